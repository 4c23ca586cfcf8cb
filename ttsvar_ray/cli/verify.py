"""`ttsvar-ray verify`: this implementation against recorded tensors and verdicts of the official ones."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode

if TYPE_CHECKING:
    from ttsvar_ray.recorded import ComparisonReport


class Family(str, enum.Enum):
    """What can be verified."""

    INFINITY = "infinity"
    REWARDS = "rewards"
    """Rewards, feature extractors and GenEval's detector."""
    GENEVAL = "geneval"
    """The rules of the benchmark."""


class _Dtype(str, enum.Enum):
    """What models compute in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


EVALUATORS = ("blip_vqa",)
"""Recorded beside the rewards, but neither rewards nor features: they are no part of a search."""


def verify(
    family: Annotated[
        Family, typer.Argument(help="Model family, the rewards, or GenEval's rules.", show_choices=True)
    ],
    folder: Annotated[
        Path, typer.Argument(help="Folder of recorded tensors; for geneval a JSON file.", metavar="DIR")
    ],
    device: options.Device = "cpu",
    dtype: Annotated[
        _Dtype, typer.Option("--dtype", help="float32: absolute errors; bfloat16: relative errors.")
    ] = _Dtype.FLOAT32,
) -> None:
    """Compare every recorded tensor with what this machine computes; the last line is the verdict.

    Exit codes: 0 all agree; 1 some differ; 2 not such a folder or file.

    Example: ttsvar-ray verify infinity recorded/infinity
    """
    report = _compare(family, folder, device=device, dtype=dtype)
    typer.echo("\n".join(report.lines()))
    if not report.passed:
        raise typer.Exit(ExitCode.FAILED)


def _compare(family: Family, folder: Path, *, device: str, dtype: _Dtype) -> ComparisonReport:
    from transformers.utils import logging as transformers_logging

    from ttsvar_ray.errors import ConfigurationError

    transformers_logging.disable_progress_bar()
    if family is Family.INFINITY:
        from ttsvar_ray.models.infinity.verify import verify_directory

        return verify_directory(folder, device=device, dtype=dtype.value)
    if dtype is not _Dtype.FLOAT32:
        raise ConfigurationError(
            f"--dtype: only models are compared in another than float32, got {dtype.value!r}"
        )
    if family is Family.GENEVAL:
        from ttsvar_ray.evaluate.recorded_geneval import verify_geneval
        from ttsvar_ray.recorded import ComparisonReport

        return ComparisonReport(device="cpu", cases=verify_geneval(folder))
    return compare_rewards(folder, device=device)


def compare_rewards(folder: Path, *, device: str = "cpu") -> ComparisonReport:
    """Compare every recorded folder of a reward, of features or of a detector inside `folder`.

    Args:
        folder: with `images` and any of imagereward, hpsv21, aesthetic_v25, dinov2_reg, mask2former.
        device: "cpu", "cuda" or "auto".

    Raises:
        CheckpointError: none of them is there, or files are missing or damaged.
    """
    import torch

    from ttsvar_ray.errors import CheckpointError
    from ttsvar_ray.evaluate.recorded_geneval import FOLDER as DETECTOR
    from ttsvar_ray.evaluate.recorded_geneval import verify_mask2former
    from ttsvar_ray.features.verify import FOLDER, verify_dinov2
    from ttsvar_ray.models.registry import resolve_device
    from ttsvar_ray.recorded import ComparisonReport
    from ttsvar_ray.rewards.verify import VERIFIERS

    verifiers = {**VERIFIERS, FOLDER: verify_dinov2, DETECTOR: verify_mask2former}
    there = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    if not there & set(verifiers):
        found = ", ".join(sorted(there)[:8]) or "none" if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{folder}: expected the folders images and any of {', '.join(verifiers)}; found {found}"
        )
    target = resolve_device(device)
    report = ComparisonReport(device=str(target))
    with torch.backends.cudnn.flags(allow_tf32=False):
        report.cases += [
            verify_one(folder, device=str(target)) for name, verify_one in verifiers.items() if name in there
        ]
    report.notes += [f"{name}: not in this folder" for name in verifiers if name not in there]
    report.notes += [
        f"{name}: not covered: an evaluator of finished images, neither a reward nor a feature extractor"
        for name in EVALUATORS
        if name in there
    ]
    return report
