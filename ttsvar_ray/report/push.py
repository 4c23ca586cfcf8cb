"""A whole output to a data set of the Hugging Face hub, part by part.

Comes in: an output that `check_folder` found whole. Goes out: its files in a repository, first `run.json`,
which says whose the repository is, then the parts in groups, each a commit, and the card last. What is there
already, by its sha256 or git digest, is not sent again: the same call goes on after a stop, and what was sent
but not committed is known to the hub by its content.

All requests are huggingface_hub's. It finds the token itself (HF_TOKEN, or `hf auth login`); nothing here
reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.dataset.output import is_continued_by
from ttsvar_ray.dataset.part_manifest import read_part_manifest
from ttsvar_ray.errors import ConfigurationError, OutputError, RunFailedError, amount, brief
from ttsvar_ray.models.weight_source import hub_errors
from ttsvar_ray.report.check import on_this_machine
from ttsvar_ray.storage.location import Location
from ttsvar_ray.storage.uris import without_folders

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PARTS_PER_COMMIT = 32
BYTES_PER_COMMIT = 4_000_000_000
"""A group of parts is committed when it has so many parts or bytes: hubs bear only some commits an hour."""

_REFUSED = (401, 403)
_KIND = "dataset"
_OWN_FOLDERS = ("data/", "trace/", "manifest/", "failed/", "scores/")
_NOBODYS = {".gitattributes", "README.md"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedFile:
    """A file of the data set.

    Attributes:
        path: in the repository.
        source: where it is, or its content.
        size: in bytes.
        sha256: of its content, hexadecimal.
        git: digest that git names it by; "" where only sha256 is known, of files too large for git.
    """

    path: str
    source: Location | bytes
    size: int
    sha256: str
    git: str = ""

    @classmethod
    def of(cls, path: str, content: bytes) -> PushedFile:
        """Return a small file."""
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return cls(
            path=path, source=content, size=len(content), sha256=hashlib.sha256(content).hexdigest(), git=git
        )

    def is_there(self, remote: Mapping[str, Any]) -> bool:
        """Whether the repository has this very file."""
        found = remote.get(self.path)
        if found is None:
            return False
        if found.lfs is not None:
            return bool(found.lfs.sha256 == self.sha256)
        return bool(self.git and found.blob_id == self.git)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """What a push did.

    Attributes:
        url: of the data set.
        files, sent: of the data set, and of those, sent now.
        sent_bytes: of these.
        commits: that were made.
    """

    url: str
    files: int
    sent: int
    sent_bytes: int
    commits: int


def push(
    layout: OutputLayout,
    manifest: RunManifest,
    repository: str,
    *,
    api: HfApi,
    own: Sequence[PushedFile],
    is_public: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> PushReport:
    """Make a repository of the hub what an output is.

    Args:
        layout, manifest: of an output that is whole.
        repository: OWNER/NAME; made, private, where it is not there.
        own: files beside the parts that come last: the card, and what it shows.
        is_public: whether a repository that is made is public, and one that is may be written to.
        tell: told where it stands.

    Raises:
        ConfigurationError: no such owner, a token that may not write there, or a card that the hub refuses,
            such as for a licence that it does not know.
        OutputError: the repository holds something else, or is public.
        RunFailedError: the hub cannot be reached or refuses; the same call goes on.
    """
    with _for_people(repository):
        _check_cards(own)
        url = api.create_repo(repository, repo_type=_KIND, private=not is_public, exist_ok=True)
        is_private = api.repo_info(repository, repo_type=_KIND).private
        if not is_public and is_private is False:
            raise OutputError(f"{repository}: expected a private data set, found a public one; add --public")
        if is_public and is_private:
            tell(f"{repository} was made private and stays so; its settings on the hub open it to everybody")
        remote = _listed(api, repository)
        _check_owner(api, repository, remote, manifest)
        pushing = _Push(api, repository, remote, tell)
        run = json.dumps(without_folders(json.loads(layout.run_file.read_bytes())), indent=2) + "\n"
        pushing.add([PushedFile.of("run.json", run.encode())])
        pushing.commit("The run")
        chunks = list(layout.data_parts())
        for place, chunk in enumerate(chunks):
            files = list(_files_of_part(layout, chunk))
            if pushing.add(files):
                size = sum(file.size for file in files)
                tell(f"part {place + 1} of {len(chunks)} ({amount(size, 'B')})")
            if pushing.is_full or place + 1 == len(chunks):
                pushing.commit(f"Parts up to {layout.data_part(chunk).name}")
        pushing.add([*_small_files(layout), *own])
        pushing.remove_others()
        pushing.commit("The card")
        there = _listed(api, repository)
        left = [path for path, file in pushing.files.items() if not file.is_there(there)]
    if left:
        raise RunFailedError(
            f"{repository}: {len(left)} files are not there as they were sent, such as {left[0]}; the same "
            "command sends them again"
        )
    return PushReport(
        url=str(url),
        files=len(pushing.files),
        sent=pushing.sent,
        sent_bytes=pushing.sent_bytes,
        commits=pushing.commits,
    )


class _Push:
    """Files on their way: uploaded as they come, committed in groups."""

    def __init__(
        self, api: HfApi, repository: str, remote: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        self.files: dict[str, PushedFile] = {}
        self.sent = self.sent_bytes = self.commits = 0
        self._api, self._repository, self._remote, self._tell = api, repository, remote, tell
        self._waiting: list[Any] = []
        self._groups = self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether what waits is enough for a commit."""
        return self._groups >= PARTS_PER_COMMIT or self._bytes >= BYTES_PER_COMMIT

    def add(self, files: Sequence[PushedFile]) -> bool:
        """Upload those of some files that are not there; return whether there was any."""
        from huggingface_hub import CommitOperationAdd

        self.files |= {file.path: file for file in files}
        new = [file for file in files if not file.is_there(self._remote)]
        with contextlib.ExitStack() as copies:
            operations = [
                CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=_readable(file, copies))
                for file in new
            ]
            # Contents are forgotten once they are sent: a copy need not outlive this block.
            self._api.preupload_lfs_files(
                self._repository, additions=[*operations], repo_type=_KIND, free_memory=True
            )
        self._waiting += operations
        self._groups += bool(new)
        self._bytes += sum(file.size for file in new)
        self.sent += len(new)
        self.sent_bytes += sum(file.size for file in new)
        return bool(new)

    def remove_others(self) -> None:
        """Have what the output no longer has removed from its folders."""
        from huggingface_hub import CommitOperationDelete

        self._waiting += [
            CommitOperationDelete(path_in_repo=path)
            for path in self._remote
            if path.startswith(_OWN_FOLDERS) and path not in self.files
        ]

    def commit(self, message: str) -> None:
        """Make what waits part of the data set."""
        if not self._waiting:
            return
        self._api.create_commit(
            self._repository, operations=self._waiting, commit_message=message, repo_type=_KIND
        )
        self.commits += 1
        self._waiting = []
        self._groups = self._bytes = 0


def _files_of_part(layout: OutputLayout, chunk: int) -> Iterator[PushedFile]:
    """Yield the files of a part: images, searches, manifest, dead letters."""
    place = layout.manifest_part(chunk)
    manifest = read_part_manifest(place)
    assert manifest is not None, "an output that is whole has a manifest of each part"
    for folder, file, known in (
        ("data", layout.data_part(chunk), manifest.data),
        ("trace", layout.trace_part(chunk), manifest.trace),
    ):
        path = f"{folder}/{file.name}"
        if known.bytes < _SMALL_BYTES:
            yield PushedFile.of(path, file.read_bytes())
        else:
            yield PushedFile(path=path, source=file, size=known.bytes, sha256=known.sha256)
    yield PushedFile.of(f"manifest/{place.name}", place.read_bytes())
    letters = layout.failed_part(chunk)
    if letters.is_file():
        yield PushedFile.of(f"failed/{letters.name}", letters.read_bytes())


_SMALL_BYTES = 5_000_000
"""Files below this may be kept in git itself by a hub, which then knows no sha256 of them."""


def _small_files(layout: OutputLayout) -> Iterator[PushedFile]:
    """Yield what is no part: sessions, bad lines, tables of scores."""
    for path, file in (
        ("sessions.jsonl", layout.sessions_file),
        ("failed/bad_lines.jsonl", layout.bad_lines_file),
    ):
        if file.is_file():
            yield PushedFile.of(path, file.read_bytes())
    scores = layout.root / "scores"
    for table in scores.names():
        for name in (scores / table).names():
            if name.endswith(".parquet"):
                yield PushedFile.of(f"scores/{table}/{name}", (scores / table / name).read_bytes())


def _readable(file: PushedFile, copies: contextlib.ExitStack) -> str | bytes:
    """Return the content, or a path to it on this machine."""
    if isinstance(file.source, bytes):
        return file.source
    return str(copies.enter_context(on_this_machine(file.source)))


def _listed(api: HfApi, repository: str) -> dict[str, Any]:
    """Return the files of a repository by path."""
    entries = api.list_repo_tree(repository, repo_type=_KIND, recursive=True)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def _check_cards(own: Sequence[PushedFile]) -> None:
    """Ask the hub what it thinks of a card before anything is sent: its commit would be the last."""
    from huggingface_hub import DatasetCard
    from yaml import YAMLError

    for file in own:
        if file.path != "README.md":
            continue
        assert isinstance(file.source, bytes), "a card is made here"
        try:
            DatasetCard(file.source.decode(), ignore_metadata_errors=True).validate()
        except (ValueError, YAMLError) as error:
            raise ConfigurationError(
                f"the card: the hub refuses it ({error}); correct --licence, or README.md where it is "
                "your own"
            ) from None


def _check_owner(api: HfApi, repository: str, remote: Mapping[str, Any], manifest: RunManifest) -> None:
    """Refuse a repository that holds something else than this run, or than its beginning."""
    if "run.json" not in remote:
        foreign = sorted(remote.keys() - _NOBODYS)
        if foreign:
            raise OutputError(
                f"{repository}: expected a new or empty data set, or one that this run was pushed to; it "
                f"holds {', '.join(foreign[:5])}; choose another name"
            )
        return
    with tempfile.TemporaryDirectory(prefix="ttsvar-push-") as folder:
        file = api.hf_hub_download(repository, "run.json", repo_type=_KIND, local_dir=folder)
        text = Path(file).read_bytes()
    try:
        present = RunManifest.from_json(json.loads(text))
        is_same = is_continued_by(present, manifest)
    except (KeyError, TypeError, ValueError, AttributeError):
        is_same = False
    if not is_same:
        raise OutputError(f"{repository}: holds another run; choose another name")


@contextlib.contextmanager
def _for_people(repository: str) -> Iterator[None]:
    """Turn what the hub and the way to it raise into errors that say what to do."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (*hub_errors(), RuntimeError)):
            raise
        if isinstance(error, OutputError | ConfigurationError):
            raise
        # What ends an upload is wrapped.
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = getattr(getattr(reason, "response", None), "status_code", None)
        if status in _REFUSED:
            raise ConfigurationError(
                f"{repository}: the hub refuses ({brief(reason)}); log in by `hf auth login`, or set "
                "HF_TOKEN to a token that may write there"
            ) from None
        raise RunFailedError(
            f"{repository}: the hub cannot be used ({brief(reason)}); what is there stays, the same command "
            "goes on"
        ) from error
