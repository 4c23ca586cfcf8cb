"""A fixed list of small jobs, and a digest of all that each of them decides and draws.

    python -m tests.support.recorded_jobs            prints the digests as JSON

Digests depend on how the processor rounds. `FIXED_ARITHMETIC` pins the libraries to instructions that every
x86-64 processor has and to one order of summation, so that they can be compared between machines.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.var import load_case, save_var
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.results import PromptResult
from ttsvar_ray.types import Prompt

FIXED_ARITHMETIC = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Nehalem",
    "OMP_NUM_THREADS": "1",
}

TEXTS = ("a photo of a ring and a circle",)
JOBS: dict[str, tuple[str, ...]] = {
    "raw": ("strategy.name=raw",),
    "best-of-n": ("strategy.name=best-of-n", "strategy.n=3"),
    "resampling alone": ("strategy.name=resampling", "strategy.n=3"),
    "tts-var, the model's plan": ("strategy.plan=model",),
    "tts-var, 12 trajectories": (
        "strategy.batch_schedule=[12,12,12,12,8,8,2,2,2,1,1,1,1]",
        "strategy.cluster_scales=[4]",
        "strategy.resample_scales=[6,9]",
    ),
    "tts-var, the published plan": ("strategy.plan=published",),
    "tts-var, difference and stratified": (
        "strategy.plan=published",
        "strategy.potential=diff",
        "strategy.scheme=stratified",
        "features.extractor=pca_all",
    ),
    "tts-var, ensemble": (
        "strategy.plan=published",
        "reward.name=ensemble",
        "reward.members={shapes: null, constant: null}",
    ),
}
VAR_TEXTS = ("thing 2", "6")


def digests() -> dict[str, str]:
    """Run every job in this process; return the digest of each."""
    found = {name: _digest(["model.name=shapes", *given], TEXTS) for name, given in JOBS.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_var(
            Path(folder) / "model",
            model=load_case("shared_modulation").model,
            dtype=torch.float32,
            plan={"batch_schedule": [6, 4, 4, 2, 2], "cluster_scales": [], "resample_scales": [1, 3]},
            reward={"name": "constant"},
        )
        found["VAR"] = _digest([f"model.name={Path(folder) / 'model'}"], VAR_TEXTS)
    return found


def _digest(settings: list[str], texts: tuple[str, ...]) -> str:
    files = ["prompts.path=unread.txt", "output.path=unwritten", "output.keep=all"]
    config = load_config(None, [*files, "model.device=cpu", "engine.threads=1", "seed=7", *settings])
    job = resolve(config)
    prompts = [Prompt(row=row, prompt_id=f"p{row}", ordinal=0, text=text) for row, text in enumerate(texts)]
    outcomes = run_local(
        prompts,
        plan=job.plan,
        engines=[build_engine(job)],
        run_seed=config.seed,
        settings=CoordinatorSettings(keep="all"),
    )
    content = {outcome.prompt.key: _content(outcome) for outcome in outcomes}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _content(outcome: object) -> dict[str, Any]:
    assert isinstance(outcome, PromptResult), outcome
    return {
        "images": [
            {
                "pixels": hashlib.sha256(_pixels(image.image.payload).tobytes()).hexdigest(),
                "bits": hashlib.sha256(b"".join(image.bits)).hexdigest(),
                "reward": repr(image.reward),
                "rewards": [repr(value) for value in image.reward_history],
                "lineage": list(image.lineage),
            }
            for image in outcome.images
        ],
        "ancestors": [[int(slot) for slot in record.ancestor_index] for record in outcome.trace],
    }


def _pixels(payload: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))


if __name__ == "__main__":
    json.dump(digests(), sys.stdout, indent=2, ensure_ascii=False)
    print()
