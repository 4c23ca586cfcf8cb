"""Why a part could not be written, for people."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from ttsvar_ray.cluster.parts import explain
from ttsvar_ray.storage.location import locate


def as_from_a_sink(error: Exception) -> Exception:
    return RayTaskError("Sink.write", "stack", error).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_named_with_what_is_free(tmp_path: Path, error: OSError) -> None:
    reason = explain(as_from_a_sink(error), locate(tmp_path))
    assert f"no space is left for {tmp_path}" in reason
    assert "GB free); make room" in reason


def test_other_errors_are_what_they_are(tmp_path: Path) -> None:
    reason = explain(as_from_a_sink(PermissionError(errno.EACCES, "Permission denied")), locate(tmp_path))
    assert reason == "PermissionError: [Errno 13] Permission denied"
