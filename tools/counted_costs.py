"""Write what the built-in model and the published ones cost at their usual size into the package.

    python -m tools.counted_costs

To be run when a model's modules, or how they are counted, have changed: `tests/unit/costs` says so.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ttsvar_ray.job.footprint import cost_digest, count_costs
from ttsvar_ray.models.registry import BUILT_IN, describe_model, published_names

RECORD = Path(__file__).resolve().parents[1] / "ttsvar_ray" / "costs" / "counted.json"

MODELS = ((BUILT_IN, "float32"), *((name, "bfloat16") for name in (BUILT_IN, *published_names())))
"""With the number formats that they run in: the built-in one on CPUs, too."""


def main() -> None:
    """Count them all."""
    counted = {}
    for name, dtype in MODELS:
        description = describe_model(name)
        cost = count_costs(description, dtype)
        counted[cost_digest(description, dtype)] = dataclasses.asdict(cost)
    lines = (f'"{digest}": {json.dumps(values)}' for digest, values in counted.items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
