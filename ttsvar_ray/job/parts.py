"""Which reward scores a job's images and which extractor sees them: names, and where their weights are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ttsvar_ray.config.sections import FeaturesConfig, RewardConfig
from ttsvar_ray.errors import ConfigurationError, nearest, noting
from ttsvar_ray.features.registry import EXTRACTORS, find_own_extractor
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.own_code import is_own, load_own_class
from ttsvar_ray.rewards.registry import REWARDS, find_own_reward
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.types import RewardCombination
from ttsvar_ray.vision.published import MAP_PATCHES_FILE, PublishedWeights

FETCH_WORDS = "`ttsvar-ray fetch JOB.yaml` brings them"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPart:
    """A reward or an extractor.

    Attributes:
        name: in the registry, or an import path.
        path: the files of its weights.
        source_digest: of the code behind an import path.
    """

    name: str
    path: Path | None
    source_digest: str | None = None


def resolve_rewards(section: RewardConfig, description: ModelDescription) -> tuple[NamedPart, ...]:
    """Return which rewards score a job's images: its own choice, or the model's; several in an ensemble.

    An ensemble's members are in the order of their names, so that the order in a job file means nothing.

    Raises:
        ConfigurationError: with every unknown name, and every path where nothing is.
    """
    if section.members is not None:
        problems: list[str] = []
        found: list[NamedPart] = []
        for name, path in sorted(section.members.items()):
            with noting(problems):
                found.append(_named_reward("reward.members", name, path, description, section))
        if problems:
            raise ConfigurationError(problems)
        return tuple(found)
    name = section.name
    if name == "auto":
        if description.reward_name is None:
            raise ConfigurationError(
                f"reward.name: model {description.name!r} brings no reward of its own; expected one of "
                f"{', '.join(REWARDS)}, or ensemble, got 'auto'"
            )
        name = description.reward_name
    return (_named_reward("reward", name, section.path, description, section),)


def _named_reward(
    setting: str, name: str, path: str | None, description: ModelDescription, section: RewardConfig
) -> NamedPart:
    inside = setting == "reward.members"
    where = f"reward.members: {name}" if inside else "reward.path"
    if is_own(name):
        files = _existing(where, path, None)
        own = find_own_reward(
            name,
            path=files,
            preprocessing=section.preprocessing,
            dtype=section.dtype,
            options=section.options,
            setting=setting if inside else "reward.name",
        )
        return NamedPart(name=name, path=files, source_digest=own.source_digest)
    if name not in REWARDS:
        choices = ", ".join(REWARDS)
        expected = f"rewards among {choices}" if inside else f"auto, ensemble or one of {choices}"
        where = setting if inside else "reward.name"
        raise ConfigurationError(f"{where}: expected {expected}, got {name!r}{nearest(name, list(REWARDS))}")
    own_path = description.reward_path if name == description.reward_name else None
    entry = REWARDS[name]
    words = f"; {FETCH_WORDS}" if entry.weights.files else ""
    files = _existing(where, path, own_path, words)
    entry.refuse_unread(path=path, preprocessing=section.preprocessing, dtype=section.dtype)
    if files is None and entry.has_folder:
        raise ConfigurationError(
            f"{where}: the reward {name!r} needs the directory of its weights, got nothing; set it "
            "(`ttsvar-ray doctor JOB.yaml` says how to get them)"
        )
    if path is not None and files is not None and (absent := _absent_files(entry.weights, files)):
        raise ConfigurationError(f"{where}: expected {' and '.join(absent)} in {files}, found none{words}")
    return NamedPart(name=name, path=files)


def _absent_files(weights: PublishedWeights, folder: Path) -> list[str]:
    """Return which published files are not in a folder; none of a reward directory in our own format."""
    config = folder / "config.json"
    is_ours = config.is_file() and '"blip-reward"' in config.read_text(encoding="utf-8", errors="replace")
    if is_ours and (folder / "model.safetensors").is_file():
        return []
    named = [str(Path(files.folder) / name) for files in weights.files for name in files.names]
    return [name for name in named if not (folder / name).is_file()]


def resolve_map_reward(section: RewardConfig, reward: NamedPart) -> NamedPart:
    """Return what reads a job's rewards off feature maps.

    Raises:
        ConfigurationError: no such class, or a reward whose folder has no file for it.
    """
    if is_own(section.on_map):
        own = load_own_class(
            section.on_map,
            methods=("score_maps",),
            given={},
            options=None,
            setting="reward.on_map",
            what="a map reward",
        )
        return NamedPart(name=section.on_map, path=None, source_digest=own.source_digest)
    if section.on_map != "auto":
        raise ConfigurationError(
            f"reward.on_map: expected auto, or one of your own as package.module:Name, got {section.on_map!r}"
        )
    if reward.path is None or not (reward.path / MAP_PATCHES_FILE).is_file():
        raise ConfigurationError(
            f"strategy.map_scales: expected {MAP_PATCHES_FILE} beside the weights of reward "
            f"{reward.name!r}, found none; train it (docs/rewards.md), name a map reward of yours in "
            "reward.on_map, or remove it"
        )
    return NamedPart(name=section.on_map, path=reward.path)


def combination(section: RewardConfig) -> RewardCombination | None:
    """Return how the members of a job's ensemble become one; None without an ensemble."""
    if section.members is None:
        return None
    return section.combine or RewardCombination.SOFTMAX


def resolve_extractor(section: FeaturesConfig, description: ModelDescription) -> NamedPart:
    """Return which feature extractor a job uses: its own choice, or the model's.

    Raises:
        ConfigurationError: an unknown name, or no network for it.
    """
    name = section.extractor
    if name == "auto":
        if description.extractor is None:
            raise ConfigurationError(
                f"features.extractor: model {description.name!r} brings none of its own; expected one of "
                f"{', '.join(EXTRACTORS)}, got 'auto'"
            )
        name = description.extractor
    require_known_extractor(name)
    entry = EXTRACTORS.get(name)
    reads_no_sign = is_own(name) if entry is None else not (entry.reads_sign or entry.is_joint)
    if reads_no_sign and section.pca_sign is not ComponentSign.DETERMINISTIC:
        raise ConfigurationError(
            f"features.pca_sign: extractor {name!r} finds no principal component and would not read it, got "
            f"{section.pca_sign.value!r}; remove it, or use extractor pca or pca_all"
        )
    if is_own(name):
        files = _existing("features.backbone", section.backbone, None)
        own = find_own_extractor(
            name,
            backbone=files,
            preprocessing=section.preprocessing,
            dtype=section.dtype,
            options=section.options,
        )
        return NamedPart(name=name, path=files, source_digest=own.source_digest)
    assert entry is not None
    own_path = description.backbone_path if entry.takes_any_backbone else None
    path = _existing("features.backbone", section.backbone, own_path, f"; {FETCH_WORDS}")
    if path is not None and path.is_dir() and entry.takes_any_backbone:
        saved = [name for kind in ("*.safetensors*", "*.bin*") for name in path.glob(kind)]
        if not (saved and (path / "config.json").is_file()):
            raise ConfigurationError(
                f"features.backbone: expected config.json and weights in {path}; {FETCH_WORDS}"
            )
    is_folder = path is not None and path.is_dir() and not entry.takes_any_backbone
    if path is None or is_folder:
        found = f"the folder {path}; name the file in it" if is_folder else "nothing"
        raise ConfigurationError(f"features.backbone: expected {entry.expected}, got {found}")
    return NamedPart(name=name, path=path)


def require_known_extractor(name: str) -> None:
    """Refuse a name that no extractor has; whether the class of an import path is there is not looked at.

    Raises:
        ConfigurationError: with the nearest name.
    """
    if name != "auto" and name not in EXTRACTORS and not is_own(name):
        raise ConfigurationError(
            f"features.extractor: expected auto or one of {', '.join(EXTRACTORS)}, got {name!r}"
            + nearest(name, list(EXTRACTORS))
        )


def joint_component(section: FeaturesConfig, description: ModelDescription) -> ComponentSign | None:
    """Return how the selection reduces features over the whole population; None where it does not."""
    name = (description.extractor or "auto") if section.extractor == "auto" else section.extractor
    is_joint = name in EXTRACTORS and EXTRACTORS[name].is_joint
    return section.pca_sign if is_joint else None


def _existing(setting: str, given: str | None, own: Path | None, words: str = "") -> Path | None:
    """Return where a part's files are; a refusal ends with `words`, what to do."""
    if given is None:
        return own
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigurationError(
            f"{setting}: expected the files of the weights at {path}, found nothing there{words}"
        )
    return path
