"""What one job needs, what of it is here, and the commands that put the rest where it looks."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsvar_ray.cli.doctor.checks import Finding, Mark
from ttsvar_ray.cli.doctor.weights import size_on_disk
from ttsvar_ray.cli.fetch import Download, downloads
from ttsvar_ray.cli.show import bytes_text
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.errors import ConfigurationError, noting
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.job.parts import resolve_extractor, resolve_rewards
from ttsvar_ray.job.preflight import check_memory, devices_here
from ttsvar_ray.job.prepare import named_source, uses_this_machine
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.models.infinity.presets import PRESETS, TOKENIZERS, InfinityPreset
from ttsvar_ray.models.registry import resolve_device
from ttsvar_ray.models.weight_files import NESTINGS
from ttsvar_ray.models.weight_source import HubRepository, WeightSource
from ttsvar_ray.own_code import is_own
from ttsvar_ray.prompts.files import prompt_files
from ttsvar_ray.prompts.source import STANDARD_INPUT
from ttsvar_ray.rewards.registry import REWARDS
from ttsvar_ray.search.operators.protocol import Signal

NEED_FTFY = ("hps-v2.1", "hps-v2.0", "clip-score")
"""Rewards whose texts are mended by a package of its own."""

LEAST_WINS = 15
"""Of 20 known pairs: who guesses wins as many once in fifty times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """What a job reads.

    Attributes:
        downloads: what of it somebody published.
    """

    job: ResolvedJob
    downloads: tuple[Download, ...]


def needs_of(config: JobConfig) -> _Needs:
    """Return what a job reads.

    Raises:
        ConfigurationError: settings that make no job.
        CheckpointError: a model whose description cannot be read, here or from the hub.
    """
    return _Needs(job=resolve(config), downloads=downloads(config))


def check_prompts(config: JobConfig) -> list[Finding]:
    """Look whether the prompt file is there."""
    source = named_source(config)
    if source.path in ("", STANDARD_INPUT):
        return []
    files = prompt_files(source)
    text = f"{source.name} ({len(files)} files)" if len(files) > 1 else source.name
    return [Finding(name="prompts", mark=Mark.OK, text=text)]


def check_model(needs: _Needs) -> list[Finding]:
    """Look for each part of the model where the job looks for it, and whether it is that model's."""
    description, config = needs.job.description, needs.job.config
    preset = PRESETS.get(config.model.name)
    findings = []
    for part, source in description.weights.items():
        name, place = part.replace("_", " "), _place(needs, part, source)
        where: Path | WeightSource = place / source.name if isinstance(place, Path) else source
        size = size_on_disk(WeightSource(place, source.name)) if isinstance(place, Path) else None
        if size is None and isinstance(source.root, HubRepository):
            # In the cache of the hub, where the job looks next.
            size, where = size_on_disk(source), where if size_on_disk(source) is None else source
        if size is None:
            text = f"nothing at {where}{_neighbours(part, place, preset)}"
            command = _command_of(needs, source)
            findings.append(Finding(name=name, mark=Mark.MISSING, text=text, command=command))
            continue
        problem, note = "", ""
        if preset is not None and isinstance(where, Path):
            problem, note = _tell_tale(part, where, preset)
        mark = Mark.MISSING if problem else Mark.OK
        text = f"{where}: {problem}" if problem else f"{where}, {bytes_text(size)}{note}"
        command = _command_of(needs, source) if problem else None
        findings.append(Finding(name=name, mark=mark, text=text, command=command))
    return findings


def _place(needs: _Needs, part: str, source: WeightSource) -> Path | HubRepository:
    """Return the folder that a part is in, or will be once it is fetched; the hub where that is its cache."""
    if isinstance(source.root, Path):
        return source.root
    folders = [each.folder for each in needs.downloads if each.source == str(source.root).removeprefix("hf:")]
    return folders[0] if folders and folders[0] is not None else source.root


def _command_of(needs: _Needs, source: WeightSource) -> str | None:
    """Return the command that fetches a part; None for files that nobody published."""
    root, name = str(source.root).removeprefix("hf:"), source.name
    for each in needs.downloads:
        patterns = tuple(
            one for one in each.patterns if not name or one == name or one.startswith(f"{name}/")
        )
        if patterns and (each.source == root or (each.folder is not None and each.folder == source.root)):
            return each.command(patterns)
    return None


def check_networks(needs: _Needs) -> list[Finding]:
    """Look for the files of the reward and of the features, as published; those of others are not listed."""
    config, description = needs.job.config, needs.job.description
    named = dict(config.reward.members or {})
    if not named:
        own = description.reward_name or "" if config.reward.name == "auto" else config.reward.name
        named = {own: config.reward.path}
    findings = [
        _network(needs, f"reward {name}", path, REWARDS[name].weights.licence)
        for name, path in named.items()
        if name in REWARDS and path is not None
    ]
    extractor = description.extractor if config.features.extractor == "auto" else config.features.extractor
    path = config.features.backbone
    if Signal.FEATURES in needs.job.plan.reads and extractor in EXTRACTORS and path is not None:
        findings.append(_network(needs, "features", path, EXTRACTORS[extractor].weights.licence))
    if any(name in NEED_FTFY for name in named) and importlib.util.find_spec("ftfy") is None:
        text = "this reward mends its texts with it"
        findings.append(Finding(name="ftfy", mark=Mark.MISSING, text=text, command="pip install ftfy"))
    return findings


def _network(needs: _Needs, name: str, path: str, licence: str) -> Finding:
    place = Path(path).expanduser()
    own = [each for each in needs.downloads if each.folder is not None and _is_in(each.folder, place)]
    missing = [each for each in own if each.missing]
    if missing or not place.exists():
        absent = [str((each.folder or place) / name) for each in missing for name in each.missing]
        return Finding(
            name=name,
            mark=Mark.MISSING,
            text=f"nothing at {', '.join(absent) or place}; licence: {licence}",
            command="\n".join(each.command() for each in missing) or None,
        )
    return Finding(name=name, mark=Mark.OK, text=f"{path}; licence: {licence}")


def check_own_code(needs: _Needs) -> list[Finding]:
    """Import the classes of the user's own that score and embed, as the job does before it starts."""
    config, problems = needs.job.config, list[str]()
    found = [name for name in config.reward.members or [config.reward.name] if is_own(name)]
    if found:
        with noting(problems):
            resolve_rewards(config.reward, needs.job.description)
    if Signal.FEATURES in needs.job.plan.reads and is_own(config.features.extractor):
        found.append(config.features.extractor)
        with noting(problems):
            resolve_extractor(config.features, needs.job.description)
    mark = Mark.MISSING if problems else Mark.OK
    return [Finding(name="own code", mark=mark, text=text) for text in problems or [", ".join(found)] if text]


def check_scores(needs: _Needs) -> list[Finding]:
    """Load each reward, on the job's device, and see what it makes of twenty known pairs.

    Nothing is looked at where files are missing, or where the job runs on another machine than this.
    """
    config = needs.job.config
    if not uses_this_machine(config, submitted=False):
        return []
    needed = (*check_networks(needs), *check_device(needs), *check_own_code(needs))
    if any(finding.mark is Mark.MISSING for finding in needed):
        return []
    from ttsvar_ray.job.build import build_ensemble
    from ttsvar_ray.rewards.known_pairs import score_known_pairs

    findings = []
    members = build_ensemble(needs.job, device=str(resolve_device(config.model.device))).members
    for part, reward in zip(needs.job.rewards, members, strict=True):
        if part.name == "constant":
            continue
        scores = score_known_pairs(reward)
        mark, text = Mark.OK, f"prefers the right caption of {scores.wins} of 20 known pairs"
        if scores.problem:
            # One's own may look for something that those pictures have not.
            mark = Mark.WARN if is_own(part.name) and scores.are_finite else Mark.MISSING
            text = scores.problem
        elif not scores.reads_texts:
            text = "scores of 20 known pictures differ, and do not depend on the caption"
        elif scores.wins < LEAST_WINS:
            mark, text = Mark.WARN, f"{text}, which is chance: is it the right reward, with the right files?"
        findings.append(Finding(name=f"scores {part.name}", mark=mark, text=text))
    return findings


def _is_in(folder: Path, place: Path) -> bool:
    # A setting may name one file.
    return folder == place or place in folder.parents or (bool(place.suffix) and folder == place.parent)


def check_device(needs: _Needs) -> list[Finding]:
    """Look whether the job's device is here and large enough, where it runs on this machine."""
    config = needs.job.config
    if not uses_this_machine(config, submitted=False):
        return []
    device = devices_here(config)
    if device.memory_bytes is None:
        if not config.model.device.startswith("cuda"):
            return []
        text = f"model.device is {config.model.device}, and torch sees no GPU here"
        return [Finding(name="device", mark=Mark.MISSING, text=text)]
    try:
        check_memory(needs.job, device.known)
    except ConfigurationError as error:
        return [Finding(name="device", mark=Mark.MISSING, text=str(error))]
    return [Finding(name="device", mark=Mark.OK, text=f"{device.count} x {device.title}")]


def check_choice(needs: _Needs) -> list[Finding]:
    """Say where a setting and the weights do not go together, though both work."""
    model = needs.job.config.model
    preset = PRESETS.get(model.name)
    if preset is None or model.resolution is None or model.resolution == preset.size:
        return []
    text = (
        f"{model.resolution} asked of weights that were trained for {preset.size} last: images at sizes that "
        "were not trained for are worse"
    )
    if model.name == "infinity-8b" and model.resolution == "0.25M":
        text += "; infinity-8b-512 has weights of that size"
    return [Finding(name="resolution", mark=Mark.WARN, text=text)]


def _neighbours(part: str, place: Path | HubRepository, preset: InfinityPreset | None) -> str:
    """Return a warning of another model's tokenizer that is there in place of the right one."""
    if part != "tokenizer" or preset is None or not isinstance(place, Path):
        return ""
    foreign = (one.file for one in TOKENIZERS.values() if one != preset.tokenizer)
    others = [file for file in foreign if (place / file).is_file()]
    if not others:
        return ""
    return f"; {' and '.join(others)} is there, which is not this model's: images would be bad without a word"


def _tell_tale(part: str, file: Path, preset: InfinityPreset) -> tuple[str, str]:
    """Return what shows that a file is another model's, and what cannot be told of it."""
    if file.suffix not in (".pth", ".safetensors"):
        return "", ""
    shapes = _shapes(file)
    tokens, words = shapes.get("decoder.conv_in.conv.weight"), shapes.get("word_embed.weight")
    if part == "tokenizer" and tokens is not None:
        own, channels = preset.tokenizer, tokens[1]
        alike = [one.name for one in TOKENIZERS.values() if one.codebook_dim == channels]
        if channels != own.codebook_dim:
            known = f" (as {' or '.join(alike)})" if alike else ""
            return f"has {channels} channels{known}; {preset.name} was trained with {own.name}", ""
        others = " or ".join(name for name in alike if name != own.name)
        if others:
            return "", f"; its shapes do not tell it from {others}, with which images are bad"
    if part == "transformer" and words not in (None, (preset.embed_dim, preset.bits_per_token)):
        assert words is not None
        wanted = f"{preset.embed_dim} x {preset.bits_per_token}"
        return f"its word_embed is {' x '.join(map(str, words))}; that of {preset.name} is {wanted}", ""
    return "", ""


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a file, without reading any."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="np") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    import torch

    # Onto no device: shapes alone.
    loaded: Any = torch.load(file, map_location="meta", weights_only=True, mmap=True)
    for nesting in NESTINGS:
        inner = loaded
        for key in nesting:
            inner = inner.get(key) if isinstance(inner, dict) else None
        loaded = inner if isinstance(inner, dict) else loaded
    return {key: tuple(value.shape) for key, value in loaded.items() if hasattr(value, "shape")}
