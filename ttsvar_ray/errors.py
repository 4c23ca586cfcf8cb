"""The error tree. Every message says where, what was expected, what was found, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path


class TtsVarError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigurationError(TtsVarError, ValueError):
    """Settings that cannot be run; carries all problems at once, found before any GPU is touched."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class InputError(TtsVarError, ValueError):
    """A prompt file that cannot be used at all: missing, empty, wrong encoding, absent column."""


class CheckpointError(TtsVarError, ValueError):
    """Weights that do not fit the architecture: missing, unexpected or misshapen keys."""


class RewardError(TtsVarError, ValueError):
    """A reward that is NaN or infinite where the policy asks for an error."""


class StaleStateError(TtsVarError):
    """A worker was asked to go on with state it does not hold (restarted, or released)."""


class OutputError(TtsVarError):
    """An output folder that cannot be continued: another configuration, or another run's lock."""


class DamagedImageError(TtsVarError):
    """The bytes of an image are no longer those that its worker encoded."""


class LostRowsError(TtsVarError):
    """Prompts that are in neither the images nor the dead letters of an output, or in both."""


class InterruptedRunError(TtsVarError):
    """The run stopped early in good order; the same command resumes it."""


class LostLockError(InterruptedRunError):
    """The run stopped because another one has its output folder, or may have; nothing was written over."""


class CannotStartError(TtsVarError):
    """The first worker found that settings, weights or devices cannot be used; nothing was generated."""


class RunFailedError(TtsVarError):
    """The cluster cannot finish a run; what is committed stays, and the same command goes on."""


class PieceError(TtsVarError):
    """A piece of work on finished images that other code failed at, here or on a worker; the rest is kept."""


class FeatureError(TtsVarError, ValueError):
    """Features that are NaN or infinite, so that distances between images mean nothing."""


class SelectionError(TtsVarError):
    """A selection operator that fails, or that chooses what cannot be: too few, slots that are not there."""


class StorageError(TtsVarError):
    """A path or URI that no storage here can open, or a storage that refused or failed."""


_COMMANDS = {
    code: f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
    if chr(code) not in "\n\t"
}
"""Control characters and marks of direction: to a terminal they are commands."""


def escape_controls(text: str) -> str:
    """Return text that does nothing to a terminal or a log but stand there; line ends and tabs stay."""
    return text.translate(_COMMANDS)


def amount(count: float, unit: str) -> str:
    """Return "3.4 GB" or "116 TFLOP"."""
    for prefix in " kMGTPE":
        if abs(count) < 999.5:
            return f"{count:.3g} {prefix.strip()}{unit}"
        count /= 1000
    return f"{count:.4g} Z{unit}"


def nearest(found: str, names: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the name that is most like what was found; "" where none is."""
    plain = {re.sub(r"[\W_]+", "", name.lower()): name for name in names}
    close = difflib.get_close_matches(re.sub(r"[\W_]+", "", found.lower()), list(plain), n=1, cutoff=0.6)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def brief(error: BaseException) -> str:
    """Return kind and first line of what other code raised, and the user's own line that it came through."""
    text = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {text}{own_line(error)}"


def own_line(error: BaseException) -> str:
    """Return ` [file.py, line 3]`, the innermost line not of ours, Python or a package, or nothing."""
    ours, pythons = str(Path(__file__).parent), str(Path(traceback.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename  # compiled libraries have "pyarrow/error.pxi" and the like
        if name.endswith(".py") and not name.startswith((ours, pythons)) and "-packages" not in name:
            return f" [{Path(name).name}, line {frame.lineno}]"
    return ""


@contextlib.contextmanager
def noting(problems: list[str], *others: type[TtsVarError]) -> Iterator[None]:
    """Add what is wrong with settings, and `others`, to a list, so that all problems can be told at once."""
    try:
        yield
    except ConfigurationError as error:
        problems.extend(error.problems)
    except others as error:
        problems.append(str(error))


@contextlib.contextmanager
def doing(piece: str) -> Iterator[None]:
    """Turn what other code raises over a piece of work into a PieceError, which any process can hand on."""
    try:
        yield
    except TtsVarError:
        raise
    except (Exception, SystemExit) as error:
        told = f"{piece} failed: {brief(error)}; what is done is kept, the same command goes on"
        raise PieceError(told) from error


@contextlib.contextmanager
def reading_weights(where: object, *, kind: str = "weights") -> Iterator[None]:
    """Turn what libraries raise over damaged files (cut short, no JSON, not tensors) into a CheckpointError.

    Memory that is full and packages that are missing say nothing about files: they pass.

    Args:
        where: file or folder that is read.
        kind: what it should be, for messages.

    Raises:
        CheckpointError: names `where`, the kind of the error and its first line.
    """
    try:
        yield
    except (TtsVarError, MemoryError, ImportError, AssertionError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
            raise
        raise CheckpointError(
            f"{where}: cannot be read as {kind} ({brief(error)}); a file is damaged, cut "
            "short or of another kind: copy or fetch it again"
        ) from error
