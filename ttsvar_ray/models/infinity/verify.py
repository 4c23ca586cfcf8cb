"""Compare this implementation with recorded tensors of the official one, on this machine.

A folder in the recorded format holds `config.json` (architectures and cases), `weights_{X}_infinity`,
`weights_{X}_vae` (without which no image is compared) and, as safetensors each, some of

* `case_{X}_{name}`: forced bits; conditioning, inputs, block outputs, KV cache, logits, feature maps, image;
* `case_{X}_sampled`: a free run whose bits come from `torch.multinomial` on a CPU generator;
* `case_{X}_ttsvar_forced`: a population of one prompt through two forced selections;
* `vae_{X}_{name}`: the tokenizer alone.

A file may leave tensors out. Beyond the recorded ones each forced case also checks that a replay from bits
equals the state that drew them.

Not compared: `bf16ca.*`, logits of the official code on a CPU with its cross-attention rounded to bfloat16
for a GPU kernel. This code attends in the dtype of its blocks; the difference (up to 1 on logits of
standard deviation 7) is that rounding, amplified by random weights. `final_scores` come from a stand-in
reward.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.infinity.recorded_checks import (
    RecordedArchitecture,
    check_forced,
    check_sampled,
    check_selections,
    check_tokenizer,
)
from ttsvar_ray.models.registry import resolve_device, resolve_dtype
from ttsvar_ray.recorded import Case, ComparisonReport, read_json, reading

NARROW_RELATIVE = 0.1
"""In bfloat16: largest root-mean-square difference, relative to the recorded tensor's.

The recorded weights are random and chaotic, so rounding grows from scale to scale; this tells a right
bfloat16 run (below 3 per cent) from a wrong one (about 1.4), no more.
"""

_SCALE_OR_LAYER = re.compile(r"^s\d+\.|(?<=block)\d+$|(?<=keys)\d+$|(?<=values)\d+$")
_INPUTS = (
    r"^text\.|^scale_schedule$|^(cfg|tau)_list$|\.bits$|^image$|_ids_after_s\d+$|^effective_batch$|^final_scores$"
    r"|^bf16ca\."
)
"""Recorded inputs, and what is left out on purpose: see the module's docstring."""


def verify_directory(path: Path, *, device: str = "cpu", dtype: str = "float32") -> ComparisonReport:
    """Run every case of a recorded folder and report the errors per tensor.

    Args:
        device: "cpu", "cuda", "auto".
        dtype: "float32" (judged by absolute differences) or "bfloat16" (by relative ones).

    Raises:
        CheckpointError: the folder lacks its config.json or weights, or tensors have another shape.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: expected a folder of recorded tensors with config.json and weights_*")
    target = resolve_device(device)
    chosen = resolve_dtype(dtype, target)
    report = ComparisonReport(device=str(target), dtype=str(chosen).removeprefix("torch."))
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for letter, values in read_json(path / "config.json").items():
            tokenizer_weights = path / f"weights_{letter}_vae.safetensors"
            architecture = RecordedArchitecture(
                values=values,
                transformer_weights=_read_tensors(path / f"weights_{letter}_infinity.safetensors"),
                tokenizer_weights=_read_tensors(tokenizer_weights) if tokenizer_weights.is_file() else None,
                device=target,
                dtype=chosen,
            )
            for file, check in _files(path, letter):
                case = Case(
                    name=file.stem.removeprefix("case_"),
                    recorded=_read_tensors(file),
                    kind_of=functools.partial(_SCALE_OR_LAYER.sub, ""),
                    relative=None if chosen == torch.float32 else NARROW_RELATIVE,
                )
                check(architecture, case)
                case.note_the_rest(inputs=_INPUTS)
                report.cases.append(case)
    return report


_Check = Callable[[RecordedArchitecture, Case], None]


def _files(path: Path, letter: str) -> Iterator[tuple[Path, _Check]]:
    for file in sorted(path.glob(f"vae_{letter}_*.safetensors")):
        yield file, check_tokenizer
    for file in sorted(path.glob(f"case_{letter}_*.safetensors")):
        if file.stem.endswith("_sampled"):
            yield file, check_sampled
        elif file.stem.endswith("_ttsvar_forced"):
            yield file, check_selections
        else:
            yield file, check_forced


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors file."""
    with reading(path):
        return load_file(path)
