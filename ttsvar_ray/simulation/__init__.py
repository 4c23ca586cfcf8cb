"""Runs of many GPUs, simulated: coordinators and ledger are the real ones, workers and time are not."""

from ttsvar_ray.simulation.result import SimulationResult
from ttsvar_ray.simulation.run import seconds_per_prompt, simulate
from ttsvar_ray.simulation.settings import (
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
