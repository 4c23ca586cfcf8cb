"""From a resolved job to the engine that runs it: loads weights, in the process that computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ttsvar_ray.engine.device import prepare_process
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.features.registry import FeatureExtractor, build_extractor
from ttsvar_ray.job.memory_plan import trajectory_bytes
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.preflight import devices_here
from ttsvar_ray.job.resolved import ResolvedJob, image_settings, model_choice
from ttsvar_ray.job.sizing import sized
from ttsvar_ray.models.protocol import Execution, NextScaleModel
from ttsvar_ray.models.registry import load_model, resolve_device
from ttsvar_ray.own_code import is_own, load_own
from ttsvar_ray.rewards.known_pairs import known_pictures
from ttsvar_ray.rewards.protocol import MapReward, Reward, RewardEnsemble
from ttsvar_ray.rewards.registry import build_reward

DRAW_THREADS_BESIDE_GPU = 4
"""One core draws 64 trajectories of the last scale of Infinity at 1024 x 1024 in 68 ms, eight in 21."""


def build_engine(
    job: ResolvedJob,
    *,
    reward: Reward | None = None,
    rewards: Callable[[], RewardEnsemble] | None = None,
    extractor: FeatureExtractor | None = None,
) -> Engine:
    """Load the model, the reward and, where the plan reads features, the extractor; return the engine.

    Args:
        reward, extractor: objects in place of what the settings name.
        rewards: makes all rewards, in place of `reward`; called when the model is loaded, since they may be
            in another process, which loads them meanwhile.

    Raises:
        ConfigurationError: settings that do not fit the model or this machine.
        CheckpointError: weights that cannot be used.
    """
    device = str(resolve_device(job.config.model.device))
    job = sized(job, devices_here(job.config).known)
    config, engine = job.config, job.config.engine
    model = build_model(job)
    image_format, quality, png_level = image_settings(config)
    if rewards is None:
        ensemble = build_ensemble(job, device=device) if reward is None else RewardEnsemble([reward])
    else:
        ensemble = rewards()
    return Engine(
        model=model,
        map_reward=_build_map_reward(job, ensemble),
        extractor=_build_extractor(job, device=device) if extractor is None else extractor,
        reward=ensemble,
        plan=job.plan,
        run_seed=config.seed,
        settings=EngineSettings(
            micro_batch_rows=rows_of(config, job.plan),
            deterministic=engine.deterministic,
            selector_decode=engine.selector_decode,
            nonfinite=config.reward.nonfinite,
            image_format=image_format,
            quality=quality,
            png_level=png_level,
            keep=config.output.keep,
            # A CPU's cores compute the scale meanwhile.
            draw_threads=DRAW_THREADS_BESIDE_GPU if device.startswith("cuda") else 0,
            memory_bytes=trajectory_bytes(config, job.description, job.plan, device),
        ),
    )


def build_model(job: ResolvedJob) -> NextScaleModel:
    """Load a job's model, and have this process compute as the job says.

    Raises:
        ConfigurationError, CheckpointError: as `build_engine`.
    """
    from transformers.utils import logging as transformers_logging

    config, sampling = job.config, job.config.sampling
    # A worker has no terminal, and its weights load in a moment.
    transformers_logging.disable_progress_bar()
    device = str(resolve_device(config.model.device))
    prepare_process(device, threads=config.engine.threads, deterministic=config.engine.deterministic)
    return load_model(
        model_choice(config),
        device=device,
        dtype=config.model.dtype,
        guidance=sampling.guidance,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        confidence=sampling.confidence,
        execution=Execution(
            kernels=config.engine.kernels,
            cuda_graphs=config.engine.cuda_graphs,
            fixed_shapes=config.engine.deterministic,
            stops=tuple(segment.last_scale for segment in job.plan.segments),
        ),
    )


def build_ensemble(job: ResolvedJob, *, device: str) -> RewardEnsemble:
    """Load the reward of a job, or the members of its ensemble.

    Raises:
        ConfigurationError: unknown names, missing paths, or a package that a reward needs.
        CheckpointError: a directory that does not hold what it must.
    """
    section = job.config.reward
    members = [
        build_reward(
            part.name,
            path=part.path,
            device=device,
            preprocessing=section.preprocessing,
            dtype=section.dtype,
            options=section.options,
        )
        for part in job.rewards
    ]
    plan, names = job.plan, [member.name for member in members]
    if len(names) == 1:
        return RewardEnsemble(members)
    chooses = [] if plan.final.member is None else [names.pop(plan.final.member)]
    steer = names[0] if plan.combination is None else f"{plan.combination.value}({', '.join(names)})"
    return RewardEnsemble(members, name=", chosen by ".join([steer, *chooses]))


def _build_map_reward(job: ResolvedJob, ensemble: RewardEnsemble) -> MapReward | None:
    """Return what reads rewards off feature maps: the user's, or what belongs to the job's reward."""
    part = job.map_reward
    if part is None:
        return None
    if is_own(part.name):
        mine: MapReward = load_own(part.name, setting="reward.on_map").make(setting="reward.on_map")
        return mine
    from ttsvar_ray.rewards.map_reward import own_map_reward

    return own_map_reward(ensemble.members[0], part.path)


def build_verifier(job: ResolvedJob) -> RewardEnsemble:
    """Load the rewards of a job in a process of their own, on the GPU that it was given, if any.

    Raises:
        ConfigurationError: as `build_ensemble`, or scores that a batch changes where a job must not have any.
        CheckpointError: as `build_ensemble`.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    config = job.config
    transformers_logging.disable_progress_bar()
    device = str(resolve_device("auto" if torch.cuda.is_available() else "cpu"))
    prepare_process(device, threads=config.engine.threads, deterministic=config.engine.deterministic)
    rewards = build_ensemble(job, device=device)
    if config.engine.deterministic:
        require_equal_in_batches(rewards)
    return rewards


def require_equal_in_batches(rewards: RewardEnsemble) -> None:
    """Refuse rewards whose scores of eight pictures together are not those of each alone, to the bit.

    Raises:
        ConfigurationError: says which, and by how much.
    """
    pictures, captions = known_pictures()
    pictures, captions = pictures[:8], captions[:8]
    together = rewards.score(pictures, captions).rewards
    alone = np.concatenate(
        [rewards.score(pictures[i : i + 1], captions[i : i + 1]).rewards for i in range(len(pictures))]
    )
    for member, name in enumerate(rewards.names):
        if not np.array_equal(together[:, member], alone[:, member], equal_nan=True):
            largest = float(np.abs(together[:, member] - alone[:, member]).max())
            raise ConfigurationError(
                f"engine.deterministic: expected scores of {name} that no batch changes, got differences of "
                f"up to {largest:.2g} between eight images together and each alone; use another reward or "
                "reward.dtype, or leave engine.deterministic out"
            )


def _build_extractor(job: ResolvedJob, *, device: str) -> FeatureExtractor | None:
    part, section = job.extractor, job.config.features
    if part is None:
        return None
    return build_extractor(
        part.name,
        backbone=part.path,
        pca_sign=section.pca_sign,
        preprocessing=section.preprocessing,
        dtype=section.dtype,
        device=device,
        options=section.options,
    )
