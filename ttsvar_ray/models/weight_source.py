"""Where weights are: a file or folder on this machine, or in a repository of the Hugging Face hub.

Repositories are written `hf:owner/name` or `hf:owner/name@revision`. Downloads go through huggingface_hub, so
its cache, its environment variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) and its resuming of
broken downloads hold. Nothing of a repository is ever executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttsvar_ray.errors import CheckpointError, ConfigurationError, noting

logger = logging.getLogger(__name__)

PREFIX = "hf:"
_REFERENCE = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w][\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_reference(text: str) -> bool:
    """Whether a setting names a repository of the hub rather than a path."""
    return text.startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A model repository at a revision.

    Attributes:
        name: "owner/name".
        revision: branch, tag or commit; None is the default branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, reference: str) -> HubRepository:
        """Read `hf:owner/name` or `hf:owner/name@revision`.

        Raises:
            ConfigurationError: written otherwise.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None or ".." in reference:
            raise ConfigurationError(
                f"{reference}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, for example "
                "hf:google/flan-t5-xl"
            )
        return cls(match["name"], match["revision"])

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def pinned(self) -> HubRepository:
        """Return the repository at the commit that its revision stands for now.

        Asks the hub; where that cannot be, takes what the cache saw last, or the only commit that it holds.

        Raises:
            CheckpointError: no such repository or revision, or offline and never seen.
        """
        if self.is_pinned:
            return self
        commit = self._commit()
        logger.info("%s is at commit %s", self, commit)
        return dataclasses.replace(self, revision=commit)

    def fetch(self, patterns: Sequence[str], *, folder: Path | None = None) -> Path:
        """Bring the files that match into the hub's cache, or into a folder; return where they are.

        Files that are there already are not fetched again; a broken download goes on where it broke.

        Raises:
            CheckpointError: the hub cannot be reached, or refuses, and the cache lacks files.
        """
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(
                    self.name, revision=self.revision, allow_patterns=list(patterns), local_dir=folder
                )
            )
        except hub_errors() as error:
            raise CheckpointError(
                f"{self}: cannot be fetched: {_first_line(error)}\n"
                f"Where there is a network, run: {self.download_command(patterns)}"
            ) from error

    def download_command(self, patterns: Sequence[str]) -> str:
        """Return the command that fetches the files that match into the cache."""
        # The tool ignores --include as soon as it is given plain names.
        with_wildcards = any("*" in pattern for pattern in patterns)
        parts = ["hf download", self.name]
        parts += [f"--include '{pattern}'" if with_wildcards else pattern for pattern in patterns]
        if self.revision:
            parts.append(f"--revision {self.revision}")
        return " ".join(parts)

    def _commit(self) -> str:
        from huggingface_hub import HfApi, constants

        problem = "offline mode is on"
        if not constants.HF_HUB_OFFLINE:
            try:
                commit = HfApi().model_info(self.name, revision=self.revision).sha
            except hub_errors() as error:
                problem = _first_line(error)
            else:
                assert commit is not None, "the hub names the commit of every revision"
                return commit
        folder = Path(constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"
        seen = folder / "refs" / (self.revision or constants.DEFAULT_REVISION)
        if seen.is_file():
            return seen.read_text(encoding="utf-8").strip()
        # Fetching a commit leaves no note of the branch it was taken from.
        commits = [path.name for path in folder.glob("snapshots/*") if _COMMIT.fullmatch(path.name)]
        if len(commits) == 1:
            return commits[0]
        raise CheckpointError(
            f"{self}: the hub cannot be asked for its commit ({problem}), and {folder} does not tell; "
            f"give a local path instead, or fetch it where there is a network: {self.download_command(())}"
        )


def hub_errors() -> tuple[type[Exception], ...]:
    """Return what a request to the hub may end with: its own errors, and those of its HTTP client."""
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's client moved from one package to the other; both name their errors alike.
    client = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
    return OSError, HfHubHTTPError, ValueError, client.HTTPError


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


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
    found: dict[str, Path] = {}
    problems: dict[str, list[str]] = {part: [] for part in weights}
    for part, source in weights.items():
        with noting(problems[part], CheckpointError):
            found[part] = source.fetch()
    if missing := [f"{part}: {problem}" for part, own in problems.items() for problem in own]:
        raise CheckpointError("weights are missing:\n" + "\n".join(missing))
    return found


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
        last = max(size - _BLOCK, 0)
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as stream:
            for offset in sorted({last * index // (_SAMPLES + 1) for index in range(_SAMPLES + 2)}):
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
