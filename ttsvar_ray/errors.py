"""The error tree. Every message says where, what was expected, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


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


class InterruptedRunError(TtsVarError):
    """The run stopped early in good order; the same command resumes it."""


class RunFailedError(TtsVarError):
    """The cluster cannot finish a run; what is committed stays, and the same command goes on."""


class FeatureError(TtsVarError, ValueError):
    """Features that are NaN or infinite, so that distances between images mean nothing."""


class StorageError(TtsVarError):
    """A path or URI that no storage here can open, or a storage that refused or failed."""
