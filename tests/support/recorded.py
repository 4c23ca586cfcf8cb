"""The shipped recorded rewards as a folder that `verify` reads: the files ending in .xz unpacked."""

from __future__ import annotations

import atexit
import functools
import lzma
import shutil
import tempfile
from pathlib import Path

PACKED = Path(__file__).parents[1] / "data" / "rewards"


@functools.cache
def recorded_rewards() -> Path:
    """Return a folder of this process, made once; do not write into it."""
    folder = Path(tempfile.mkdtemp(prefix="ttsvar-recorded-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    unpack(folder)
    return folder


def unpack(folder: Path) -> None:
    """Write the shipped folder to `folder`, unpacked."""
    for file in sorted(path for path in PACKED.rglob("*") if path.is_file()):
        target = folder / file.relative_to(PACKED)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".xz":
            target.with_suffix("").write_bytes(lzma.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, target)
