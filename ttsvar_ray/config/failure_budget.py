"""How many prompts of a run may end without an image before the run counts as one that failed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_PERCENT = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*%")


@dataclass(frozen=True, slots=True)
class FailureBudget:
    """A count, or a share of the lines of a prompt set.

    Attributes:
        text: as people write it: "1%", "20".
        most: prompts, or of one hundred.
        is_share: whether `most` is of one hundred.
    """

    text: str
    most: Fraction
    is_share: bool

    def __str__(self) -> str:
        return self.text

    def allows(self, failed: int, *, of: int) -> bool:
        """Whether so many failures are within the budget.

        Args:
            failed: prompts that were given up, and lines that hold no prompt.
            of: all lines, those among them.
        """
        return failed <= (self.most * of / 100 if self.is_share else self.most)


def read_failure_budget(value: Any) -> Any:
    """Read a count (20) or a share (0.1%).

    Raises:
        ValueError: something else, or more than 100%.
    """
    if isinstance(value, FailureBudget):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return FailureBudget(str(value), Fraction(value), is_share=False)
    given = value.strip() if isinstance(value, str) else ""
    if given.isdecimal():
        return FailureBudget(given, Fraction(int(given)), is_share=False)
    match = _PERCENT.fullmatch(given)
    if match is None or Fraction(match.group(1)) > 100:
        raise ValueError(f"expected a count such as 20, or a share such as 0.1%, got {value!r}")
    return FailureBudget(given, Fraction(match.group(1)), is_share=True)
