"""The data set card: tells `datasets` which files of an output folder are which table."""

from __future__ import annotations

from ttsvar_ray.storage import Location

_CARD = """---
configs:
- config_name: images
  default: true
  data_files: data/*.parquet
- config_name: trace
  data_files: trace/*.parquet
---
# Images generated with ttsvar_ray

```python
import datasets

images = datasets.load_dataset("path/to/this/folder", split="train")
images[0]["prompt"], images[0]["image"]
```

One row per kept image; `image_rank` 0 is the best image of its prompt by `reward`. `run.json` holds
the settings, the prompt set's digest and the versions. `failed/` holds prompts without an image.
"""


def write_card(location: Location) -> None:
    """Write the data set card atomically."""
    location.write_text(_CARD)
