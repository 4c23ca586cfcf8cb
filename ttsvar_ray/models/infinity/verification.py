"""The comparisons of `verify`: one check per tensor, a table for people, a verdict."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ttsvar_ray.errors import CheckpointError

Tensors = dict[str, Tensor]

LOGITS, HIDDEN, FEATURES, IMAGE, IMAGE_FP16, LEVELS, EXACT = 2e-3, 2e-3, 1e-5, 2e-4, 1e-3, 1.0, 0.0
"""Tolerances (largest absolute difference) in float32; recorded logits have standard deviation 7.

LEVELS is for 8-bit images: truncation may land on the other side of a whole number.
"""

NARROW_RELATIVE = 0.1
"""In bfloat16: largest root-mean-square difference, relative to the recorded tensor's standard deviation.

The recorded weights are random and chaotic, so rounding grows from scale to scale; this tells a right
bfloat16 run (below 3 per cent) from a wrong one (about 1.4), no more.
"""

_SCALE_OR_LAYER = re.compile(r"^s\d+\.|(?<=block)\d+$|(?<=keys)\d+$|(?<=values)\d+$")
_INPUTS = re.compile(
    r"^text\.|^scale_schedule$|^(cfg|tau)_list$|\.bits$|^image$|_ids_after_s\d+$|^effective_batch$|^final_scores$"
    r"|^bf16ca\."
)
"""Recorded inputs, and what is left out on purpose: see the module's docstring."""

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCheck:
    """One compared tensor: `error` is judged against `tolerance`."""

    case: str
    tensor: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        # A NaN is not <= anything, so it fails.
        return self.error <= self.tolerance

    @property
    def kind(self) -> str:
        """The tensor's name without its scale and layer."""
        return _SCALE_OR_LAYER.sub("", self.tensor)


@dataclass(slots=True, kw_only=True)
class VerificationReport:
    """All comparisons of one folder.

    Attributes:
        checks: one entry per tensor.
        notes: what could not be compared here, and why.
    """

    device: str
    dtype: str
    checks: list[TensorCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """Return a table for people: per case and kind of tensor the largest error, then the verdict."""
        grouped: dict[tuple[str, str], list[TensorCheck]] = {}
        for check in self.checks:
            grouped.setdefault((check.case, check.kind), []).append(check)
        lines = [f"{'case':<18} {'tensor':<18} {'count':>5} {'largest error':>14} {'tolerance':>10}"]
        for (case, kind), checks in grouped.items():
            worst = max(checks, key=lambda check: (not check.passed, check.error))
            mark = "ok" if worst.passed else f"FAILED ({worst.tensor})"
            lines.append(
                f"{case:<18} {kind:<18} {len(checks):>5} {worst.error:>14.2e} {worst.tolerance:>10.0e} {mark}"
            )
        failed = sum(not check.passed for check in self.checks)
        verdict = "all tensors agree" if self.passed else f"{failed} of {len(self.checks)} tensors differ"
        lines += self.notes
        lines.append(f"{self.device} {self.dtype}: {len(self.checks)} tensors compared, {verdict}")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCase:
    """One recorded file: compares against it and adds the checks to a report."""

    report: VerificationReport
    name: str
    tensors: Tensors
    narrow: bool
    used: set[str] = field(default_factory=set)

    def __call__(self, key: str, got: Tensor, tolerance: float, view: View | None = None) -> None:
        """Compare with the recorded tensor `key`, seen through `view`; a folder may leave it out."""
        if key in self.tensors:
            self.used.add(key)
            recorded = self.tensors[key]
            self.between(key, got, recorded if view is None else view(recorded), tolerance)

    def between(self, name: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
        """Compare two tensors under a name of their own."""
        got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
        if got.shape != expected.shape:
            raise CheckpointError(
                f"{self.name}.{name}: expected {tuple(expected.shape)} as recorded, got {tuple(got.shape)}"
            )
        difference = got - expected
        if self.narrow and tolerance != EXACT:
            scale = max(expected.square().mean().sqrt().item(), 1e-6)
            error, tolerance = difference.square().mean().sqrt().item() / scale, NARROW_RELATIVE
        else:
            error = difference.abs().max().item()
        self.report.checks.append(TensorCheck(case=self.name, tensor=name, error=error, tolerance=tolerance))

    def note_the_rest(self) -> None:
        """Say which recorded tensors were neither input nor compared."""
        rest = [key for key in self.tensors if key not in self.used and not _INPUTS.search(key)]
        if rest:
            self.report.notes.append(f"{self.name}: recorded but not compared: {', '.join(sorted(rest))}")
