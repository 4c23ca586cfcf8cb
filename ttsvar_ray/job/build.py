"""The composition root: from a job's settings to a plan, and to an engine that runs it.

What a setting leaves open ("auto", None) is filled in here from the model's own config.json, and nowhere
else. `build_plan` and `check_parts` read that file only; `build_engine` loads weights and belongs into the
process that computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ttsvar_ray.config.sections import JobConfig, StrategyConfig
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.repeatable import choose_repeatable_kernels
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.features.registry import (
    EXTRACTOR_NAMES,
    JOINT_EXTRACTOR,
    PATCH_EXTRACTORS,
    build_extractor,
    expected_backbone,
)
from ttsvar_ray.job.memory import trajectory_bytes
from ttsvar_ray.job.pass_rows import check_rows
from ttsvar_ray.models.choice import ModelChoice
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.models.registry import describe_model, load_model, resolve_device
from ttsvar_ray.models.sampling import per_scale
from ttsvar_ray.rewards.panel import RewardPanel
from ttsvar_ray.rewards.registry import REWARD_NAMES, build_reward
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.search.strategy import Strategy, compile_plan
from ttsvar_ray.types import PotentialKind, RewardCombination, SelectionKind

DEFAULT_QUALITY = 95

_PLAN_SETTINGS = ("batch_schedule", "cluster_scales", "resample_scales", "potential", "lambda")
_READ_BY: dict[Strategy, tuple[str, ...]] = {
    Strategy.RAW: (),
    Strategy.BEST_OF_N: (),
    Strategy.IMPORTANCE: ("resample_scales", "potential", "lambda"),
    Strategy.TTS_VAR: _PLAN_SETTINGS,
}
"""Which of a model's own search settings a strategy reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPart:
    """A reward or an extractor: its name in the registry, and the files of its weights."""

    name: str
    path: Path | None


def model_choice(config: JobConfig) -> ModelChoice:
    """Return which model a job wants."""
    section = config.model
    return ModelChoice(
        name=section.name,
        path=section.path,
        text_encoder=section.text_encoder,
        resolution=section.resolution,
        aspect_ratio=section.aspect_ratio,
        positive_prompt=section.positive_prompt,
    )


def describe(config: JobConfig) -> ModelDescription:
    """Say what is known of a job's model without its weights; see `describe_model`."""
    return describe_model(model_choice(config))


def build_plan(config: JobConfig) -> Plan:
    """Compile the plan of a job.

    Settings that are None come from the model's own plan (`strategy.plan: model`) or from the preset
    (`published`). A model's batch schedule belongs to its selections: where the job names selection
    scales, it is not used.

    Raises:
        ConfigurationError: settings that make no plan.
        CheckpointError: a model directory that cannot be read.
    """
    description = describe(config)
    strategy = config.strategy
    settings = _own_plan(description, strategy) if strategy.plan == "model" else {}
    given = {
        "batch_schedule": strategy.batch_schedule,
        "cluster_scales": strategy.cluster_scales,
        "resample_scales": strategy.resample_scales,
        "potential": strategy.potential,
        "lambda": strategy.lambda_,
    }
    if strategy.cluster_scales is not None or strategy.resample_scales is not None:
        settings.pop("batch_schedule", None)
    settings |= {name: value for name, value in given.items() if value is not None}
    try:
        plan = compile_plan(
            scale_schedule=description.scale_schedule,
            strategy=strategy.name,
            n=strategy.n,
            batch_schedule=settings.get("batch_schedule"),
            cluster_scales=settings.get("cluster_scales"),
            resample_scales=settings.get("resample_scales"),
            potential=settings.get("potential"),
            lambda_=settings.get("lambda"),
            scheme=strategy.scheme,
            cluster_restarts=strategy.cluster_restarts,
            joint_component=_joint_component(config, description),
        )
    except ConfigurationError as error:
        raise ConfigurationError([f"strategy.{problem}" for problem in error.problems]) from None
    if config.reward.members is None:
        return plan
    return replace(plan, reward_members=len(config.reward.members), combination=_combination(config))


def check_parts(config: JobConfig, plan: Plan) -> None:
    """Find what is wrong with a job's reward, features and sampling without loading anything.

    Raises:
        ConfigurationError: with every problem.
    """
    description = describe(config)
    problems = _problems_of(lambda: resolve_rewards(config, description))
    if needs_features(plan):
        problems += _problems_of(lambda: resolve_extractor(config, description))
    for name in ("guidance", "temperature"):
        value = getattr(config.sampling, name)
        if value is not None:
            problems += _problems_of(partial(per_scale, name, value, description.num_scales))
    if config.sampling.top_k is not None and description.sampling.top_k is None:
        problems.append(
            f"sampling.top_k: model {description.name!r} draws bits of two values each, which top-k never "
            "changes; remove it"
        )
    problems += _problems_of(partial(_check_nonfinite, config, plan))
    problems += _problems_of(partial(check_rows, config, plan))
    if config.engine.deterministic and config.cluster.batch_tokens is not None:
        problems.append(
            "cluster.batch_tokens: expected none with engine.deterministic, whose passes are always full, "
            f"got {config.cluster.batch_tokens}; remove it and lower engine.micro_batch_rows"
        )
    if problems:
        raise ConfigurationError(problems)


def build_engine(config: JobConfig, plan: Plan) -> Engine:
    """Load the model, the reward and, where the plan clusters, the extractor; return the engine.

    Raises:
        ConfigurationError: settings that do not fit the model or this machine.
        CheckpointError: weights that cannot be used.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    # A worker has no terminal, and its weights load in a moment.
    transformers_logging.disable_progress_bar()
    # Part of the guarantee: sums are split among threads, so every worker must have as many.
    torch.set_num_threads(config.engine.threads)
    check_rows(config, plan)
    description = describe(config)
    device = str(resolve_device(config.model.device))
    if config.engine.deterministic and device.startswith("cuda"):
        choose_repeatable_kernels()
    sampling = config.sampling
    model = load_model(
        model_choice(config),
        device=device,
        dtype=config.model.dtype,
        guidance=sampling.guidance,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
    extractor = None
    if needs_features(plan):
        features = resolve_extractor(config, description)
        extractor = build_extractor(
            features.name,
            backbone=features.path,
            pca_sign=config.features.pca_sign,
            preprocessing=config.features.preprocessing,
            device=device,
        )
    return Engine(
        model=model,
        reward=build_panel(config, description, device=device),
        extractor=extractor,
        plan=plan,
        run_seed=config.seed,
        settings=EngineSettings(
            micro_batch_rows=config.engine.micro_batch_rows,
            deterministic=config.engine.deterministic,
            selector_decode=config.engine.selector_decode,
            nonfinite=config.reward.nonfinite,
            image_format=config.output.image_format,
            quality=DEFAULT_QUALITY if config.output.quality is None else config.output.quality,
            memory_bytes=trajectory_bytes(config, description, plan, device),
        ),
    )


def _check_nonfinite(config: JobConfig, plan: Plan) -> None:
    # The stand-in for a reward that is not a number is the lowest one: the next score would be a huge gain.
    if plan.potential is PotentialKind.DIFF and config.reward.nonfinite == "worst":
        raise ConfigurationError(
            "reward.nonfinite: expected 'error' with strategy.potential diff, got 'worst': a trajectory "
            "that once had no reward would gain without limit at its next one; set it, or another potential"
        )


def needs_features(plan: Plan) -> bool:
    """Whether anything in the plan clusters."""
    return any(selection.kind is SelectionKind.CLUSTER for selection in plan.selections)


def build_panel(config: JobConfig, description: ModelDescription, *, device: str) -> RewardPanel:
    """Load the reward of a job, or the members of its ensemble.

    Raises:
        ConfigurationError: unknown names, missing paths, or a package that a reward needs.
        CheckpointError: a directory that does not hold what it must.
    """
    section = config.reward
    parts = resolve_rewards(config, description)
    members = [
        build_reward(
            part.name,
            path=part.path,
            device=device,
            preprocessing=section.preprocessing,
            dtype=section.dtype,
        )
        for part in parts
    ]
    combination = _combination(config)
    if combination is None:
        return RewardPanel(members)
    name = f"{combination.value}({', '.join(member.name for member in members)})"
    return RewardPanel(members, name=name)


def resolve_rewards(config: JobConfig, description: ModelDescription) -> tuple[NamedPart, ...]:
    """Return which rewards judge a job's images: its own choice, or the model's; several in an ensemble.

    An ensemble's members are in the order of their names, so that the order in a job file means nothing.
    """
    section = config.reward
    if section.members is not None:
        finds = [
            partial(_named_reward, "reward.members", name, path, description)
            for name, path in sorted(section.members.items())
        ]
        problems = [problem for find in finds for problem in _problems_of(find)]
        if problems:
            raise ConfigurationError(problems)
        return tuple(find() for find in finds)
    name = section.name
    if name == "auto":
        if description.reward_name is None:
            raise ConfigurationError(
                f"reward.name: model {description.name!r} brings no reward of its own; expected one of "
                f"{', '.join(REWARD_NAMES)}, or ensemble, got 'auto'"
            )
        name = description.reward_name
    return (_named_reward("reward", name, section.path, description),)


def _named_reward(setting: str, name: str, path: str | None, description: ModelDescription) -> NamedPart:
    inside = setting == "reward.members"
    if name not in REWARD_NAMES:
        choices = ", ".join(REWARD_NAMES)
        expected = f"rewards among {choices}" if inside else f"auto, ensemble or one of {choices}"
        raise ConfigurationError(f"{setting if inside else 'reward.name'}: expected {expected}, got {name!r}")
    own = description.reward_path if name == description.reward_name else None
    where = f"reward.members: {name}" if inside else "reward.path"
    return NamedPart(name=name, path=_existing(where, path, own))


def _combination(config: JobConfig) -> RewardCombination | None:
    """Return how the members of a job's ensemble become one; None without an ensemble."""
    if config.reward.members is None:
        return None
    return config.reward.combine or RewardCombination.SOFTMAX


def resolve_extractor(config: JobConfig, description: ModelDescription) -> NamedPart:
    """Return which feature extractor a job uses: its own choice, or the model's."""
    name = config.features.extractor
    if name == "auto":
        if description.extractor is None:
            raise ConfigurationError(
                f"features.extractor: model {description.name!r} brings none of its own; expected one of "
                f"{', '.join(EXTRACTOR_NAMES)}, got 'auto'"
            )
        name = description.extractor
    if name not in EXTRACTOR_NAMES:
        raise ConfigurationError(
            f"features.extractor: expected auto or one of {', '.join(EXTRACTOR_NAMES)}, got {name!r}"
        )
    own = description.backbone_path if name in PATCH_EXTRACTORS else None
    path = _existing("features.backbone", config.features.backbone, own)
    if path is None:
        raise ConfigurationError(f"features.backbone: expected {expected_backbone(name)}, got nothing")
    return NamedPart(name=name, path=path)


def _joint_component(config: JobConfig, description: ModelDescription) -> ComponentSign | None:
    name = config.features.extractor
    if name == "auto":
        name = description.extractor or name
    return ComponentSign(config.features.pca_sign) if name == JOINT_EXTRACTOR else None


def _existing(setting: str, given: str | None, own: Path | None) -> Path | None:
    if given is None:
        return own
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigurationError(f"{setting}: expected the files of the weights, found nothing at {path}")
    return path


def _own_plan(description: ModelDescription, strategy: StrategyConfig) -> dict[str, Any]:
    """Return those of a model's own search settings that the strategy reads."""
    own: Mapping[str, Any] = description.plan
    unknown = sorted(set(own) - {*_PLAN_SETTINGS})
    if unknown:
        raise CheckpointError(
            f"{description.source}: plan: unknown key {unknown[0]!r}; known keys: {', '.join(_PLAN_SETTINGS)}"
        )
    read = _READ_BY[Strategy(strategy.name)]
    return {name: value for name, value in own.items() if name in read and value is not None}


def _problems_of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigurationError as error:
        return list(error.problems)
    return []
