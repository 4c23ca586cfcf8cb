"""Which weights are on this machine, and the commands that fetch the others; asks no network."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from ttsvar_ray.cli.doctor.checks import Finding, Mark
from ttsvar_ray.cli.fetch import Download
from ttsvar_ray.cli.show import bytes_text
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.models.description import ModelChoice
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.models.weight_source import HubRepository, WeightSource
from ttsvar_ray.rewards.registry import REWARDS
from ttsvar_ray.vision.published import PublishedFiles, PublishedWeights

MODELS = ("infinity-2b", "infinity-8b", "infinity-8b-512", "var-d30")
"""Published models that are looked for without being asked for."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def check_hub() -> list[Finding]:
    """Look at the hub's cache and at its offline mode."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    held = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    offline = "offline mode is on: nothing will be fetched" if constants.HF_HUB_OFFLINE else "may fetch"
    text = f"cache {cache} ({held} models), {offline}"
    return [Finding(name="hub", mark=Mark.OK, text=text)]


def check_models(choices: list[ModelChoice]) -> list[Finding]:
    """Look for the weights of models in the hub's cache or at their paths; what they share is named once."""
    findings: list[Finding] = []
    named: set[str] = set()
    for choice in choices:
        description = describe_model(choice)
        absent: list[str] = []
        patterns: dict[HubRepository, list[str]] = {}
        held = 0
        for part, source in description.weights.items():
            size = size_on_disk(source)
            if size is not None:
                held += size
                continue
            absent.append(f"no {part.replace('_', ' ')} ({source})")
            if isinstance(source.root, HubRepository) and str(source) not in named:
                patterns.setdefault(source.root, []).extend(_wanted(source))
            named.add(str(source))
        commands = [repository.download_command(wanted) for repository, wanted in patterns.items()]
        findings.append(
            Finding(
                name=description.name,
                mark=Mark.MISSING if absent else Mark.OK,
                text=", ".join(absent) if absent else f"complete, {bytes_text(held)}",
                command="\n".join(commands) or None,
            )
        )
    return findings


def _wanted(source: WeightSource) -> tuple[str, ...]:
    """Return what to fetch; of a name that is a file by its ending, nothing below it."""
    is_file = Path(source.name).suffix in WEIGHT_SUFFIXES
    return (source.name,) if is_file else source.needed


def check_networks(folder: Path) -> list[Finding]:
    """Look for the published rewards and feature networks, each in a folder of its name below `folder`."""
    rewards = [
        _network(entry.name, entry.weights, folder / entry.name, f"reward.path={folder / entry.name}")
        for entry in REWARDS.values()
        if entry.weights.files
    ]
    features = {}
    for entry in EXTRACTORS.values():
        place = folder / entry.network
        named = place if entry.takes_any_backbone else place / entry.weights.files[0].names[0]
        features[entry.network] = _network(entry.network, entry.weights, place, f"features.backbone={named}")
    return [*rewards, *features.values()]


def size_on_disk(source: WeightSource) -> int | None:
    """Return the bytes of weights that are on this machine; None where a file or pattern has none."""
    root = _cached(source.root) if isinstance(source.root, HubRepository) else source.root
    if root is None:
        return None
    if not isinstance(source.root, HubRepository):
        path = root / source.name
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files) if files else None
    names = {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}
    matched = {name for name in names for pattern in source.needed if fnmatch.fnmatch(name, pattern)}
    # Small files beside weights prove nothing.
    weights = [name for name in matched if Path(name).suffix in WEIGHT_SUFFIXES]
    if not weights:
        return None
    return sum(names[name].stat().st_size for name in matched)


def _cached(repository: HubRepository) -> Path | None:
    """Return the folder of a repository's revision in the hub's cache, if it was ever fetched."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.name.replace('/', '--')}"
    revision = repository.revision or constants.DEFAULT_REVISION
    reference = folder / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _network(name: str, weights: PublishedWeights, folder: Path, setting: str) -> Finding:
    """Return what is there of one network; `setting` is how a job names it."""
    missing = [files for files in weights.files if _absent(files, folder)]
    licence = f"licence {weights.licence}"
    if not missing:
        return Finding(name=name, mark=Mark.OK, text=f"{folder}; {setting}; {licence}")
    absent = ", ".join(str(Path(files.folder) / file) for files in missing for file in _absent(files, folder))
    return Finding(
        name=name,
        mark=Mark.MISSING,
        text=f"{folder}: no {absent}; {licence}",
        command="\n".join(
            Download(source=files.source, patterns=files.names, folder=folder / files.folder).command()
            for files in missing
        ),
    )


def _absent(files: PublishedFiles, folder: Path) -> list[str]:
    return [name for name in files.names if not (folder / files.folder / name).is_file()]
