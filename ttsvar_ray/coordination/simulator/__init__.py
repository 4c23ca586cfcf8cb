"""Runs of many GPUs, simulated: coordinators and ledger are the real ones, workers and time are not."""

from ttsvar_ray.coordination.simulator.result import SimulationResult
from ttsvar_ray.coordination.simulator.run import seconds_per_prompt, simulate
from ttsvar_ray.coordination.simulator.settings import (
    CoordinatorCosts,
    PayloadSizes,
    SimulationSettings,
)

__all__ = [
    "CoordinatorCosts",
    "PayloadSizes",
    "SimulationResult",
    "SimulationSettings",
    "seconds_per_prompt",
    "simulate",
]
