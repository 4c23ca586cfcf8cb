"""The memory of a job on one device, stage by stage, and how many prompts that leaves room for.

Here is also how many bytes a worker can give to trajectories, once its weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.job.footprint import has_counted_costs, in_worker, job_networks
from ttsvar_ray.job.workload import held_bytes, running_bytes
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.vision.published import BATCH_ROWS

if TYPE_CHECKING:
    import torch

RESERVED_SHARE = 0.05
"""Of a GPU's memory, kept free: the workspace of its libraries, and what is lost between blocks of memory."""


def trajectory_bytes(
    config: JobConfig, description: ModelDescription, plan: Plan, device: torch.device | str
) -> int | None:
    """Return what a worker of a job can give to trajectories; None means that only rows limit it.

    To be called when the weights are loaded. Where a model's memory is not counted, nothing is promised:
    an engine that runs out of memory halves its micro-batches.
    """
    if not has_counted_costs(description):
        return None
    memory_gb = config.engine.memory_gb
    if not str(device).startswith("cuda"):
        return available_bytes(device, memory_gb=memory_gb)
    networks = in_worker(job_networks(config, description, plan, on_gpu=True), config)
    workspace = _workspace_bytes(networks) + networks.recorded_bytes
    return available_bytes(device, memory_gb=memory_gb, workspace=workspace)


def _workspace_bytes(networks: JobNetworks) -> int:
    """Return the most bytes that looking at images or encoding a text takes, whichever is larger.

    It does not grow with the micro-batch: these networks run in batches of a fixed size, texts one by one.
    Decoding is counted with the segments, see `job.workload.running_bytes`.
    """
    return max(_image_network_bytes(networks), _text_bytes(networks))


def _image_network_bytes(networks: JobNetworks) -> int:
    """Return about the most bytes alive while a full batch of images is scored, or turned into features."""
    return BATCH_ROWS * max(networks.reward.activation_bytes, networks.extractor.activation_bytes)


def _text_bytes(networks: JobNetworks) -> int:
    """Return the most bytes that the text side takes while one prompt is encoded, what stays included."""
    return networks.model.text.running_bytes + networks.text_encoder.activation_bytes()


def available_bytes(
    device: torch.device | str, *, memory_gb: float | None = None, workspace: int = 0
) -> int | None:
    """Return the bytes that a worker can give to trajectories; None means that only rows limit it.

    To be called when the weights are loaded.

    Args:
        memory_gb: the setting `engine.memory_gb`; None is what a GPU has left, and no limit on a CPU.
        workspace: bytes to leave for what is no trajectory's, see `_workspace_bytes`.
    """
    import torch

    device = torch.device(device)
    given = None if memory_gb is None else int(memory_gb * 1e9)
    if device.type != "cuda":
        return given
    free, total = torch.cuda.mem_get_info(device)
    # What the allocator holds and nobody uses is free, too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = max(free - int(RESERVED_SHARE * total) - workspace, 0)
    return left if given is None else min(left, given)


CONTEXT_BYTES = 600_000_000
"""What a GPU's driver and libraries take before anything is computed; varies with their versions."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a prompt's life, of the whole population on one device.

    Attributes:
        taken: most bytes alive in it as it runs, in its micro-batches, weights left out.
        least: the same where they run one at a time, the finished ones waiting.
        kept: bytes that stay until the next stage.
    """

    name: str
    taken: int
    least: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What one prompt takes on one device.

    Attributes:
        weights: bytes by part.
        stages: in the order of a prompt's life, the decoding of images included; then decoding and judging
            on their own.
        workspace: bytes for what is no trajectory's.
        recorded: bytes that a GPU keeps for recorded passes.
    """

    weights: Mapping[str, int]
    stages: tuple[Stage, ...]
    workspace: int
    recorded: int = 0

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return sum(self.weights.values())

    @property
    def peak_bytes(self) -> int:
        """The most bytes of one prompt alone in its micro-batches, weights included."""
        return self.weight_bytes + self.recorded + max(stage.taken for stage in self.stages)

    @property
    def least_bytes(self) -> int:
        """The most bytes of one prompt alone whose trajectories run one at a time, weights included."""
        return self.weight_bytes + self.recorded + max(stage.least for stage in self.stages)

    def room(self, device_bytes: float) -> int:
        """Return the bytes of a device that are left to trajectories; negative where weights do not fit."""
        reserved = RESERVED_SHARE * device_bytes + CONTEXT_BYTES
        return int(device_bytes - reserved - self.weight_bytes - self.workspace - self.recorded)

    def prompts_under_way(self, device_bytes: float) -> int:
        """Return how many prompts may be under way on a device while one trajectory at a time computes.

        Each of the others holds the most that it ever holds between two segments.
        """
        room, running = self.room(device_bytes), max(stage.least for stage in self.segments)
        if room < running:
            return 0
        held = max(stage.kept for stage in self.segments)
        waiting = (room - running) // held if held else 0
        return max(1 + waiting, self.prompts_side_by_side(device_bytes))

    def prompts_side_by_side(self, device_bytes: float) -> int:
        """Return how many prompts may be in their heaviest segment at the same time, in one micro-batch."""
        return max(self.room(device_bytes), 0) // max(stage.taken for stage in self.segments)

    def misfit(self, device_bytes: float) -> str | None:
        """Return why not even one trajectory fits a device, in words; None where one does."""
        room, stage = self.room(device_bytes), max(self.segments, key=lambda stage: stage.least)
        if room >= stage.least:
            return None
        if room <= 0:
            return f"the weights take {self.weight_bytes / 1e9:.1f} of {device_bytes / 1e9:.0f} GB"
        return f"{stage.name} need {stage.least / 1e9:.1f} GB, {room / 1e9:.1f} are left beside the weights"

    @property
    def segments(self) -> list[Stage]:
        """The stages in which trajectories run, one for each segment of the plan."""
        return [stage for stage in self.stages if stage.name.startswith("scales ")]


def memory_plan(
    networks: JobNetworks,
    plan: Plan,
    *,
    selector_decode: str,
    rows: tuple[int, ...] | None = None,
    pass_rows: tuple[int, ...] | None = None,
) -> MemoryPlan:
    """Return what one prompt of a plan takes on one device, in its widest round.

    Args:
        selector_decode: "full" or "selector", the size of the images that selections look at.
        rows: most trajectories of a micro-batch, by segment; None: all of a prompt's.
        pass_rows: rows that every forward pass has, by segment; None: as many as there are trajectories.
    """
    plan = plan.widest
    model, text = networks.model, networks.model.text.held_bytes
    stages = [Stage("text", _text_bytes(networks), _text_bytes(networks), text)]
    parents = text
    for segment in plan.segments:
        held = held_bytes(model, segment)
        kept = segment.population * held
        most = segment.population if rows is None else min(segment.population, rows[segment.index])
        taken, least = (
            parents
            + (segment.population - count) * held
            + count * running_bytes(networks, segment, rows=count, selector_decode=selector_decode)
            for count in (most, 1)
        )
        if pass_rows is not None:
            # Whatever runs, a pass has states of its own for all of its rows.
            full = pass_rows[segment.index]
            each = running_bytes(networks, segment, rows=full, selector_decode=selector_decode)
            taken = least = parents + kept + full * each
        stages.append(Stage(f"scales {segment.first_scale}-{segment.last_scale}", taken, least, kept))
        parents = kept
    survivors = plan.survivors_after[-1]
    stages.append(_passing("decode", model.decodes["full"].bytes_of(survivors)))
    if selector_decode == "selector":
        widest = max(segment.population for segment in plan.segments)
        stages.append(_passing("decode for selectors", model.decodes["selector"].bytes_of(widest)))
    stages.append(_passing("reward and features", _image_network_bytes(networks)))
    return MemoryPlan(
        weights=networks.weight_bytes,
        stages=tuple(stages),
        workspace=_workspace_bytes(networks),
        recorded=networks.recorded_bytes,
    )


def _passing(name: str, taken: int) -> Stage:
    """Return a stage that keeps nothing and takes the same however many trajectories there are."""
    return Stage(name, taken, taken, 0)
