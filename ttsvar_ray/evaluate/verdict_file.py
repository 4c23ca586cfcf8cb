"""Verdicts in a JSONL file, one line an image, so that an evaluation goes on after a stop.

The first line says what the verdicts rest on; only the same evaluation goes on in a file. A line counts once
it is whole: a last one that was cut short is written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ttsvar_ray.errors import OutputError


class VerdictFile:
    """Verdicts by the digest of image and prompt; to be used as a context.

    Args:
        path: made where it is not there.
        basis: everything but the images that verdicts rest on, as JSON has it.

    Raises:
        OutputError: the file has verdicts that rest on something else, or is no such file.
    """

    def __init__(self, path: Path, basis: Mapping[str, Any]) -> None:
        self.path = path
        self._found: dict[str, Mapping[str, Any]] = {}
        self._file = path.open("a+b")
        try:
            self._read({"basis": dict(basis)})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> VerdictFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, digest: str) -> Mapping[str, Any] | None:
        """Return what was found of an image; None where there is no verdict on it."""
        return self._found.get(digest)

    def __getitem__(self, digest: str) -> Mapping[str, Any]:
        return self._found[digest]

    def add(self, digest: str, found: Mapping[str, Any]) -> None:
        """Write what was found of an image; it is there when this returns."""
        self._write({"digest": digest, **found})
        self._found[digest] = found

    def _read(self, expected: Mapping[str, Any]) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            try:
                content = json.loads(line)
                if number:
                    self._found[content.pop("digest")] = content
                else:
                    self._compare(content["basis"], expected["basis"])
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path}: line {number + 1}: expected verdicts of an evaluation; choose another file"
                ) from error
            whole += len(line)
        self._file.truncate(whole)
        if not whole:
            self._write(expected)

    def _compare(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        differ = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        if differ:
            changes = "; ".join(
                f"{name}: {found.get(name)} there, {expected.get(name)} now" for name in differ
            )
            raise OutputError(
                f"{self.path}: its verdicts rest on something else ({changes}); choose another file"
            )

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
