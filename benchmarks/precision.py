"""What TF32, float16 and bfloat16 change in rewards and features: scores, features, choices.

    python -m benchmarks.precision --output benchmarks/results/precision.json
    python -m benchmarks.precision --device cuda --populations 512 --output FILE.json

The built-in reward is trained; it sees scenes in populations of eight, of which four show what the caption
says. TF32 is arithmetic of GPUs: on a CPU it is float32, and is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import record
from recipes.shapes.captions import sample_caption, sample_scene_for
from recipes.shapes.render import render_batch
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.search.operators.cluster import cluster_survivors
from ttsvar_ray.types import Precision

POPULATIONS, POPULATION, SURVIVORS, SCENE_SIZE = 64, 8, 6, 64


def measure(precision: Precision, populations: int = POPULATIONS, *, device: str = "cpu") -> dict[str, Any]:
    """Compare a precision with float32."""
    description = describe_model("shapes")
    both = (Precision.FLOAT32, precision)
    rewards = [
        build_reward("shapes", path=description.reward_path, device=device, dtype=each) for each in both
    ]
    extractors = [
        build_extractor("pca", backbone=description.backbone_path, device=device, dtype=each) for each in both
    ]
    rng = np.random.default_rng(0)
    scores: list[list[np.ndarray]] = [[], []]
    pairs = same_pairs = same_best = same_survivors = turned = 0
    for _ in range(populations):
        caption, other = sample_caption(rng), sample_caption(rng)
        shown = [caption] * (POPULATION // 2) + [other] * (POPULATION // 2)
        images = render_batch([sample_scene_for(rng, each) for each in shown], SCENE_SIZE)
        one, two = (reward.score(images, [caption.text] * POPULATION) for reward in rewards)
        scores[0].append(one)
        scores[1].append(two)
        order = [
            np.sign(each[:, None] - each[None, :])[np.triu_indices(POPULATION, 1)] for each in (one, two)
        ]
        pairs, same_pairs = pairs + len(order[0]), same_pairs + int((order[0] == order[1]).sum())
        same_best += int(one.argmax() == two.argmax())
        features = [extractor.extract(images) for extractor in extractors]
        turned += int(((features[0] * features[1]).sum(axis=1) < 0).sum())
        kept = [cluster_survivors(each, SURVIVORS, np.random.default_rng(0))[0] for each in features]
        same_survivors += int(np.array_equal(*kept))
    wide, narrow = (np.concatenate(each).astype(np.float64) for each in scores)
    return {
        "largest drift of a score over the deviation": round(
            float(np.abs(wide - narrow).max() / wide.std()), 5
        ),
        "mean drift of a score over the deviation": round(
            float(np.abs(wide - narrow).mean() / wide.std()), 5
        ),
        "pairs that change order": f"{pairs - same_pairs} of {pairs}",
        "populations whose best image is the same": f"{same_best} of {populations}",
        f"populations with the same {SURVIVORS} survivors of {POPULATION}": f"{same_survivors}"
        f" of {populations}",
        "components that turn around": f"{turned} of {populations * POPULATION}",
    }


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description="What narrow numbers change in rewards and features.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--populations", type=int, default=POPULATIONS, help="how many of eight scenes each")
    options = parser.parse_args()
    output = options.output
    torch.set_num_threads(1)
    narrow = [Precision.FLOAT16, Precision.BFLOAT16]
    if options.device != "cpu":
        narrow.insert(0, Precision.TF32)
    result = {
        "machine": record("torch", "transformers", "numpy"),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "populations": options.populations,
        "built-in reward and its vision tower (trained)": {
            each.value: measure(each, options.populations, device=options.device) for each in narrow
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
