"""How many bytes a worker can give to trajectories, once its weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.job.footprint import has_counted_costs, in_worker, job_networks
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.vision.published import BATCH_ROWS, FLOAT32_BYTES

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
    workspace = workspace_bytes(networks) + networks.recorded_bytes
    return available_bytes(device, memory_gb=memory_gb, workspace=workspace)


def workspace_bytes(networks: JobNetworks) -> int:
    """Return the most bytes that looking at images or encoding a text takes, whichever is larger.

    It does not grow with the micro-batch: these networks run in batches of a fixed size, texts one by one.
    Decoding is counted with the segments, see `job.workload.running_bytes`.
    """
    return max(image_network_bytes(networks), text_bytes(networks))


def image_network_bytes(networks: JobNetworks) -> int:
    """Return about the most bytes alive while a full batch of images is scored, or turned into features."""
    return BATCH_ROWS * max(networks.reward.activation_bytes, networks.extractor.activation_bytes)


def text_bytes(networks: JobNetworks) -> int:
    """Return the most bytes that the text side takes while one prompt is encoded, what stays included."""
    return networks.model.text.running_bytes + networks.text_encoder.activation_bytes(FLOAT32_BYTES)


def available_bytes(
    device: torch.device | str, *, memory_gb: float | None = None, workspace: int = 0
) -> int | None:
    """Return the bytes that a worker can give to trajectories; None means that only rows limit it.

    To be called when the weights are loaded.

    Args:
        device: of the worker.
        memory_gb: the setting `engine.memory_gb`; None is what a GPU has left, and no limit on a CPU.
        workspace: bytes to leave for what is no trajectory's, see `workspace_bytes`.
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
