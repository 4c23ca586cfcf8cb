"""Our ImageReward beside the original package, live.

$TTSVAR_REFERENCE_PYTHON names an interpreter that has it; tests/parity/reference_requirements.txt says how to
make its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.recorded import recorded_rewards
from ttsvar_ray.rewards.verify import load_recorded_image_reward

SCRIPT = Path(__file__).parents[1] / "support" / "reference_scores.py"
SHAPES = ((224, 224), (224, 300), (61, 223), (512, 384))
"""(height, width) of images beyond the recorded ones."""
MORE_TEXTS = (
    "",
    "?!",
    "two Dogs, RED bus " * 12,
    "a cat\twith\nblanks",
    "żółw ΩΩ 猫",
    "[SEP] tokens [PAD] in texts",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    "TTSVAR_REFERENCE_PYTHON" not in os.environ,
    reason="set TTSVAR_REFERENCE_PYTHON to a python that can import image-reward 1.5 "
    "(tests/parity/reference_requirements.txt)",
)
def test_scores_equal_those_of_the_original_package(tmp_path: Path) -> None:
    place = recorded_rewards() / "imagereward"
    texts = [*json.loads((place / "ref.json").read_text())["prompts"], *MORE_TEXTS]
    for name in ("ImageReward.pt", "med_config.json", "vocab.txt"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    paths = [*sorted((recorded_rewards() / "images").glob("*.png")), *_more_images(tmp_path)]
    run = subprocess.run(
        [os.environ["TTSVAR_REFERENCE_PYTHON"], str(SCRIPT), str(tmp_path), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    reference = json.loads(run.stdout.splitlines()[-1])

    reward = load_recorded_image_reward(place)
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    ours = np.array([[reward.score(image[None], [text])[0] for image in images] for text in texts])
    assert ours.std() > 0.5, "the networks tell images and texts apart"
    np.testing.assert_allclose(ours, reference["score"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours, reference["rewards"], rtol=0, atol=1e-5)
    assert (1 + np.argsort(np.argsort(-ours, axis=1), axis=1)).tolist() == reference["rank"]


def _more_images(folder: Path) -> list[Path]:
    generator = np.random.default_rng(3)
    paths = []
    for number, (height, width) in enumerate(SHAPES):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        paths.append(folder / f"more{number}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths
