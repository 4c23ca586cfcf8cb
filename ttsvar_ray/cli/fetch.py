"""`ttsvar-ray fetch`: the weights of a job, or a published prompt set, to where they are looked for."""

from __future__ import annotations

import dataclasses
import hashlib
import http
import json
import re
import shlex
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode
from ttsvar_ray.errors import CheckpointError, ConfigurationError, InputError

if TYPE_CHECKING:
    from ttsvar_ray.config.job import JobConfig
    from ttsvar_ray.models.description import ModelDescription
    from ttsvar_ray.vision.published import PublishedWeights

RECORD = ".fetched.json"
"""In a folder of fetched files: which commit of which repository they are, so that a broken download goes on
with the same one."""

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_TIMEOUT_S = 60.0
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """A published prompt file at a commit, with its checksum."""

    url: str
    sha256: str
    about: str


PROMPT_SETS = {
    "geneval": PromptSet(
        url="https://raw.githubusercontent.com/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/"
        "prompts/evaluation_metadata.jsonl",
        sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        about="GenEval, 553 prompts, MIT (Copyright 2023 Dhruba Ghosh)",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Files of one source.

    Attributes:
        source: "owner/name[@revision]" of the hub, or a URL.
        patterns: names, or patterns of names, of the files.
        folder: where they go; None is the hub's cache.
        note: what somebody should know of their licence; such files are left to the user.
    """

    source: str
    patterns: tuple[str, ...]
    folder: Path | None
    note: str = ""

    def __str__(self) -> str:
        source = self.source if self.source.startswith("https://") else f"hf:{self.source}"
        return f"{source}  {' '.join(self.patterns)}  ->  {self.folder or 'the cache of the hub'}"

    def command(self, patterns: tuple[str, ...] = ()) -> str:
        """Return the command, on one line, that puts files where a job looks for them; none given is all."""
        wanted = patterns or self.patterns
        if self.source.startswith("https://"):
            target = f"{self.folder}/{wanted[0]}"
            return f"curl -L --create-dirs -o {shlex.quote(target)} {shlex.quote(self.source)}"
        name, _, revision = self.source.partition("@")
        # The tool ignores --include as soon as it is given plain names.
        include = "--include " if any("*" in pattern for pattern in wanted) else ""
        files = " ".join(f"{include}{shlex.quote(pattern)}" for pattern in wanted)
        where = f" --local-dir {shlex.quote(str(self.folder))}" if self.folder is not None else ""
        at = f" --revision {revision}" if revision else ""
        return f"hf download {name} {files}{at}{where}"

    @property
    def missing(self) -> tuple[str, ...]:
        """Which files are not in the folder: of plain names each, of patterns those of weights."""
        folder = self.folder
        if folder is None or not _read_record(folder).get(self.source, {}).get("whole", True):
            return self.patterns
        plain = not any("*" in pattern for pattern in self.patterns)
        needed = [name for name in self.patterns if plain or name.endswith((*_WEIGHTS, "/*"))]
        return tuple(name for name in needed if not any(path.is_file() for path in folder.glob(name)))


def fetch(
    job: Annotated[
        str,
        typer.Argument(
            help='YAML job file or sweep, or "prompts" for a published prompt set.', metavar="JOB.yaml"
        ),
    ] = "",
    name: Annotated[
        str | None, typer.Argument(help="Prompt set after the word prompts: geneval.", metavar="NAME")
    ] = None,
    model: options.Model = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File of the prompt set; prompts/NAME.jsonl by default.", metavar="FILE"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched; ask nobody.")
    ] = False,
    settings: options.Settings = None,
) -> None:
    """Bring what a job reads to where it looks: `ttsvar-ray fetch JOB.yaml && ttsvar-ray generate JOB.yaml`.

    Weights of the model, the reward and the features go to the folders that the job names (or to the cache
    of the hub, where it names none), on this machine or a file system that all share; of a sweep for
    `compare` also those of its evaluators; and a published prompt set. What is there stays; a
    broken download goes on where it broke, at the same commit. The commits are noted in .fetched.json: copy
    that file into an empty folder to get the same weights there.

    `ttsvar-ray fetch prompts geneval` writes GenEval's prompts (MIT), checked by their checksum.

    Exit codes: 0 everything is there; 2 something cannot be had, and why.

    Example: ttsvar-ray fetch jobs/infinity_2b.yaml
    """
    if job == "prompts":
        _fetch_prompts(name, to, dry_run=dry_run)
        return
    from ttsvar_ray.config.load import load_config, read_job_file
    from ttsvar_ray.job.sweep import read_sweep

    overrides = options.overrides({"model.name": model}, settings)
    if job and {"variants", "grid"} & read_job_file(Path(job)).keys():
        sweep, variants = read_sweep(Path(job), Path(), overrides)
        configs, evaluators = [variant.job for variant in variants], sweep.evaluators
    else:
        configs = [load_config(Path(job) if job else None, overrides, needs_files=False)]
        evaluators = []
    of_jobs = [download for config in configs for download in downloads(config)]
    wanted = _merged([*of_jobs, *_of_evaluators(evaluators)])
    read = {config.prompts.path for config in configs}
    files = {one: _prompts_file(one) for one in PROMPT_SETS}
    absent = [one for one, file in files.items() if str(file) in read and not file.exists()]
    if not wanted and not absent:
        typer.echo(f"model {configs[0].model.name}: nothing to fetch, all that it reads is here")
    for one in absent:
        _fetch_prompts(one, None, dry_run=dry_run)
    left_over = [download for download in wanted if not _bring(download, dry_run=dry_run)]
    if left_over and not dry_run:
        raise typer.Exit(ExitCode.BAD_SETTINGS)


def _merged(each: Iterable[Download]) -> tuple[Download, ...]:
    """Return one download for each source and folder."""
    found: dict[tuple[str, Path | None], Download] = {}
    for download in each:
        key = download.source, download.folder
        before = found[key].patterns if key in found else ()
        patterns = tuple(dict.fromkeys((*before, *download.patterns)))
        found[key] = dataclasses.replace(download, patterns=patterns)
    return tuple(found.values())


def _of_evaluators(evaluators: Iterable[str]) -> Iterator[Download]:
    """Yield what the evaluators of a sweep read: `NAME=FOLDER`, or a benchmark's `NAME=FIRST:SECOND`."""
    from ttsvar_ray.cli.compare import BENCHMARKS
    from ttsvar_ray.rewards.registry import REWARDS

    for given in evaluators:
        name, _, folder = given.partition("=")
        if name in BENCHMARKS:
            from ttsvar_ray.evaluate.benchmark_scorers import published_weights

            for files, place in published_weights(given):
                yield Download(source=files.source, patterns=files.names, folder=place)
        elif name in REWARDS:
            yield from _of_network(REWARDS[name].weights, f"evaluators: {name}", folder or None)


def downloads(config: JobConfig) -> tuple[Download, ...]:
    """Return everything published that a job reads, whether it is there or not; reads no weights.

    Raises:
        ConfigurationError: settings that make no job, or no folder named where one is needed.
    """
    from ttsvar_ray.job.resolved import resolve
    from ttsvar_ray.search.operators.protocol import Signal

    job = resolve(config)
    has_features = Signal.FEATURES in job.plan.reads
    return _merged((*_of_model(config), *_of_parts(config, job.description, has_features)))


def _of_model(config: JobConfig) -> Iterator[Download]:
    from ttsvar_ray.job.resolved import model_choice
    from ttsvar_ray.models.infinity.presets import TEXT_ENCODER_FOLDER
    from ttsvar_ray.models.registry import describe_model, published_names
    from ttsvar_ray.models.weight_source import HubRepository, is_hub_reference, parse_root

    choice = model_choice(config)
    if is_hub_reference(choice.name):
        yield Download(source=choice.name.removeprefix("hf:"), patterns=("*",), folder=None)
    local = None
    if choice.name in published_names() and choice.path is not None:
        root = parse_root(choice.path)
        if isinstance(root, Path):
            local, choice = root, dataclasses.replace(choice, path=None)
    for part, source in describe_model(choice).weights.items():
        if not isinstance(source.root, HubRepository) or is_hub_reference(choice.name):
            continue
        folder = local
        if part == "text_encoder":
            # A text encoder that the job names is the user's own, or in the cache.
            folder = None if local is None or choice.text_encoder else local / TEXT_ENCODER_FOLDER
        repository = str(source.root).removeprefix("hf:")
        # A name that is a file by its ending has nothing below it.
        patterns = (source.name,) if source.name.endswith(_WEIGHTS) else source.needed
        yield Download(source=repository, patterns=patterns, folder=folder)


def _of_parts(config: JobConfig, description: ModelDescription, has_features: bool) -> Iterator[Download]:
    from ttsvar_ray.features.registry import EXTRACTORS
    from ttsvar_ray.rewards.registry import REWARDS

    reward, features = config.reward, config.features
    name = (description.reward_name or "") if reward.name == "auto" else reward.name
    members = {name: reward.path} if reward.members is None else reward.members
    for name, path in members.items():
        brought = description.reward_path is not None and name == description.reward_name
        if name in REWARDS and not (path is None and brought):
            setting = "reward.path" if reward.members is None else f"reward.members: {name}"
            yield from _of_network(REWARDS[name].weights, setting, path)
    name = (description.extractor or "") if features.extractor == "auto" else features.extractor
    if has_features and name in EXTRACTORS:
        entry = EXTRACTORS[name]
        brought = description.backbone_path is not None and entry.takes_any_backbone
        if features.backbone is not None or not brought:
            yield from _of_network(entry.weights, "features.backbone", features.backbone)


def _of_network(weights: PublishedWeights, setting: str, path: str | None) -> Iterator[Download]:
    for files in weights.files:
        if path is None:
            raise ConfigurationError(f"{setting}: expected where {' and '.join(files.names)} go, got nothing")
        folder = Path(path).expanduser()
        if folder.suffix in _WEIGHTS:
            # A setting that names the one file itself.
            if folder.is_file():
                return
            if files.names != (folder.name,):
                raise ConfigurationError(
                    f"{setting}: {path} is not there, and what is fetched comes as a folder; name one, such "
                    f"as {folder.with_suffix('')}"
                )
            folder = folder.parent
        is_file = files.source.startswith("https://")
        note = weights.licence if is_file and "AGPL" in weights.licence else ""
        yield Download(source=files.source, patterns=files.names, folder=folder / files.folder, note=note)


def _bring(download: Download, *, dry_run: bool) -> bool:
    """Fetch one download; return whether its files are there afterwards."""
    if not download.missing:
        typer.echo(f"there     {download}")
        return True
    if download.note:
        typer.echo(f"yours     {download}")
        typer.echo(f"          {download.note}: this command leaves it to you:")
        typer.echo(f"          {download.command()}")
        return False
    typer.echo(f"{'missing ' if dry_run else 'fetching'}  {download}")
    if dry_run:
        return False
    if download.source.startswith("https://"):
        assert download.folder is not None
        # torch's publishers put the beginning of a file's sha256 behind its name.
        named = re.search(r"-([0-9a-f]{8,64})\.pth$", download.source)
        sha256 = named[1] if named else ""
        _fetch_url(download.source, download.folder / download.patterns[0], sha256=sha256)
        return True
    _fetch_from_hub(download)
    return True


def _fetch_from_hub(download: Download) -> None:
    from ttsvar_ray.models.weight_source import HubRepository

    repository = HubRepository.parse(f"hf:{download.source}")
    folder = download.folder
    if folder is None:
        repository.fetch(download.patterns)
        return
    record = _read_record(folder)
    noted = record.get(download.source, {}).get("commit")
    repository = dataclasses.replace(repository, revision=str(noted)) if noted else repository.pinned()
    for whole in (False, True):
        if whole:
            repository.fetch(download.patterns, folder=folder)
        record[download.source] = {"commit": repository.revision, "whole": whole}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if download.missing:
        raise CheckpointError(f"{repository}: there is no {' and no '.join(download.missing)} in it")


def _read_record(folder: Path) -> dict[str, dict[str, object]]:
    file = folder / RECORD
    read: dict[str, dict[str, object]] = json.loads(file.read_text()) if file.is_file() else {}
    return read


def _prompts_file(name: str) -> Path:
    return Path("prompts") / f"{name}.jsonl"


def _fetch_prompts(name: str | None, to: Path | None, *, dry_run: bool) -> None:
    if name not in PROMPT_SETS:
        raise InputError(f"prompts: expected one of {', '.join(PROMPT_SETS)}, got {name or 'nothing'}")
    wanted = PROMPT_SETS[name]
    file = to or _prompts_file(name)
    if file.is_file() and _sha256(file) == wanted.sha256:
        typer.echo(f"there     {file}  ({wanted.about})")
        return
    if file.exists():
        raise InputError(f"{file}: is there and is not {wanted.about}; name another file by --to")
    typer.echo(f"{'missing ' if dry_run else 'fetching'}  {wanted.url}  ->  {file}  ({wanted.about})")
    if not dry_run:
        _fetch_url(wanted.url, file, sha256=wanted.sha256)


def _fetch_url(url: str, file: Path, *, sha256: str) -> None:
    """Fetch a file, whose checksum begins so, on from where it broke; its name appears when all is there."""
    part = file.with_name(f"{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
            size = int(answer.headers.get("Content-Length", 0)) + (start if goes_on else 0)
            with part.open("ab" if goes_on else "wb") as stream:
                while block := answer.read(_BLOCK):
                    stream.write(block)
    except OSError as error:
        raise CheckpointError(
            f"{url}: cannot be fetched: {error}\nWhere there is a network, run: curl -L -o '{file}' '{url}'"
        ) from error
    if part.stat().st_size < size:
        raise CheckpointError(f"{url}: the connection broke; the same command goes on")
    if sha256 and not _sha256(part).startswith(sha256):
        part.unlink()
        raise CheckpointError(
            f"{url}: what came is not what was published (sha256 {sha256}); nothing is kept"
        )
    part.rename(file)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
