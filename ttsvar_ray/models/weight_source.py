"""Where weights are: a file or folder on this machine or in a repository of the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.hub import HubRepository, is_hub_reference

TEXT_ENCODER_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "spiece.model",
)
"""Of a text encoder's repository: it may also hold the same weights for other frameworks."""

_BLOCK = 64 * 1024
_SAMPLES = 32

Root = Path | HubRepository


def parse_root(text: str) -> Root:
    """Return what a setting names: `hf:owner/name[@revision]`, or a path.

    Raises:
        ConfigurationError: a malformed reference to the hub.
    """
    return HubRepository.parse(text) if is_hub_reference(text) else Path(text).expanduser()


@dataclass(frozen=True, slots=True)
class WeightSource:
    """One file or folder of weights.

    Attributes:
        root: a folder, or a repository of the hub.
        name: path inside `root`; "" is `root` itself.
        patterns: what to fetch from the hub for a folder; files of other names are not needed.
    """

    root: Root
    name: str = ""
    patterns: tuple[str, ...] = ()

    def __str__(self) -> str:
        if isinstance(self.root, Path):
            return str(self.root / self.name)
        return f"{self.root} {self.name}".rstrip()

    @property
    def needed(self) -> tuple[str, ...]:
        """Patterns of the files in `root`."""
        return self.patterns or ((self.name, f"{self.name}/*") if self.name else ("*",))

    def fetch(self) -> Path:
        """Return the path on this machine, after fetching it from the hub where it is there.

        Raises:
            CheckpointError: nothing there.
        """
        folder = self.root if isinstance(self.root, Path) else self.root.fetch(self.needed)
        path = folder / self.name
        if not path.exists():
            raise CheckpointError(f"{self}: no such file or folder")
        return path

    def fingerprint(self) -> str:
        """Return what tells these weights from others, cheaply.

        Of the hub it is the commit. Of files it is a digest of names, sizes and samples: the first and last
        64 KiB and 32 blocks between, which tells any two checkpoints apart, not a file with one bit flipped.

        Raises:
            CheckpointError: nothing there, or the hub cannot be asked.
        """
        if isinstance(self.root, HubRepository):
            return f"{self.root.pinned()} {self.name}".rstrip()
        return fingerprint_path(self.fetch())


def text_encoder_source(reference: str) -> WeightSource:
    """Return where a text encoder is that a setting names: a folder or a repository of its own."""
    return WeightSource(parse_root(reference), patterns=TEXT_ENCODER_FILES)


def fetch_all(weights: Mapping[str, WeightSource]) -> dict[str, Path]:
    """Return the path of each part on this machine; see `WeightSource.fetch`.

    Raises:
        CheckpointError: with everything that is missing, not only the first.
    """
    found = {part: _fetched(source) for part, source in weights.items()}
    problems = [f"{part}: {result}" for part, result in found.items() if isinstance(result, CheckpointError)]
    if problems:
        raise CheckpointError("weights are missing:\n" + "\n".join(problems))
    return {part: result for part, result in found.items() if isinstance(result, Path)}


def _fetched(source: WeightSource) -> Path | CheckpointError:
    try:
        return source.fetch()
    except CheckpointError as error:
        return error


def fingerprint_path(path: Path) -> str:
    """Return the sampled digest of a file, or of all files of a folder; see `WeightSource.fingerprint`.

    Raises:
        CheckpointError: nothing there.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    digest = hashlib.sha256()
    for file in _files(path):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as stream:
            for offset in _sampled_offsets(size):
                stream.seek(offset)
                digest.update(stream.read(_BLOCK))
    return f"sampled-sha256:{digest.hexdigest()}"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def _sampled_offsets(size: int) -> list[int]:
    last = max(size - _BLOCK, 0)
    return sorted({last * index // (_SAMPLES + 1) for index in range(_SAMPLES + 2)})
