"""Write what the built-in model and the published ones cost at their usual size into the package.

    python -m tools.counted_costs

To be run when a model's modules, or how they are counted, have changed: `tests/unit/costs` says so.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

from ttsvar_ray.job.footprint import cost_digest, count_costs
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.models.registry import BUILT_IN, describe_model, published_names

RECORD = Path(__file__).resolve().parents[1] / "ttsvar_ray" / "costs" / "counted.json"

MODELS = ((BUILT_IN, "float32"), *((name, "bfloat16") for name in (BUILT_IN, *published_names())))
"""With the number formats that they run in: the built-in one on CPUs, too."""


def unguided(description: ModelDescription) -> ModelDescription:
    """Return a model without guidance, as looks ahead run it."""
    plain = replace(description.sampling, guidance=(1.0,) * description.num_scales)
    return replace(description, sampling=plain)


def main() -> None:
    """Count them all."""
    counted = {}
    described = [(describe_model(name), dtype) for name, dtype in MODELS]
    described += [(unguided(describe_model(BUILT_IN)), dtype) for dtype in ("float32", "bfloat16")]
    for description, dtype in described:
        cost = count_costs(description, dtype)
        counted[cost_digest(description, dtype)] = dataclasses.asdict(cost)
    lines = (f'"{digest}": {json.dumps(values)}' for digest, values in counted.items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
