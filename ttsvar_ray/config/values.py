"""What fields of settings hold: kinds of numbers, and values that people write in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field


def _not_a_bool(value: Any) -> Any:
    """Keep YAML's `yes` and `true` out of numbers, where pydantic would read them as 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


Integer = Annotated[int, BeforeValidator(_not_a_bool)]
Number = Annotated[float, BeforeValidator(_not_a_bool), AllowInfNan(False)]
Count = Annotated[Integer, Field(ge=1)]
ScaleIndex = Annotated[Integer, Field(ge=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Confidence = Annotated[Number, Field(gt=0.5, le=1)]
Text = Annotated[str, Field(min_length=1)]


def _device_name(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return value
    raise ValueError(f'expected "auto", "cpu", "cuda" or "cuda:N", got {value!r}')


DeviceName = Annotated[str, BeforeValidator(_device_name)]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Marks a setting that says where weights are.

    Attributes:
        or_name: whether it may be a name instead.
    """

    or_name: bool = False


Weights = Annotated[Text | None, WeightFiles()]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """All columns but some, or some and no others.

    Attributes:
        keep: these alone; None: all but `drop`.
        drop: not these.
    """

    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: Any) -> Any:
        """Read a list of names (those to keep), `{keep: [...]}` or `{drop: [...]}`.

        Raises:
            ValueError: something else.
        """
        if value is None or isinstance(value, cls):
            return value
        given = {"keep": value} if isinstance(value, list | tuple) else value
        if isinstance(given, dict) and len(given) == 1:
            ((key, names),) = given.items()
            if isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names):
                if key == "keep":
                    return cls(keep=tuple(names))
                if key == "drop":
                    return cls(drop=tuple(names))
        raise ValueError(
            f"expected [name, ...], {{keep: [name, ...]}} or {{drop: [name, ...]}}, got {value!r}"
        )

    def to_json(self) -> dict[str, list[str]]:
        """Return a choice as a job file has it."""
        return {"drop": list(self.drop)} if self.keep is None else {"keep": list(self.keep)}


@dataclass(frozen=True, slots=True)
class Shard:
    """Part k of the data set is made by shard k mod `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        """Its own folder in the output's."""
        return f"shard-{self.index}-of-{self.count}"

    @classmethod
    def read(cls, value: Any) -> Any:
        """Read `i/n`.

        Raises:
            ValueError: something else, or i beyond n - 1.
        """
        if value is None or isinstance(value, cls):
            return value
        index, slash, count = value.partition("/") if isinstance(value, str) else ("", "", "")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(
                f"expected i/n with i from 0 to n-1, such as 0/8 for the first of eight, got {value!r}"
            )
        return cls(int(index), int(count))


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

    @classmethod
    def read(cls, value: Any) -> Any:
        """Read a count (20) or a share (0.1%).

        Raises:
            ValueError: something else, or more than 100%.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(str(value), Fraction(value), is_share=False)
        given = value.strip() if isinstance(value, str) else ""
        if given.isdecimal():
            return cls(given, Fraction(int(given)), is_share=False)
        match = _PERCENT.fullmatch(given)
        if match is None or Fraction(match.group(1)) > 100:
            raise ValueError(f"expected a count such as 20, or a share such as 0.1%, got {value!r}")
        return cls(given, Fraction(match.group(1)), is_share=True)
