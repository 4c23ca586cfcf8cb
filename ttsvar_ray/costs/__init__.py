"""Counted costs: FLOPs, bytes and, with a device's rates, seconds. Free of torch: shapes are enough."""

from ttsvar_ray.costs.model import ModelShape
from ttsvar_ray.costs.plan_cost import ComponentFlops, PlanCost, PlannedScale, plan_cost
from ttsvar_ray.costs.profile import DeviceProfile, device_names, load_profile
from ttsvar_ray.costs.shape import ScaleCost, TransformerShape, scale_costs

__all__ = [
    "ComponentFlops",
    "DeviceProfile",
    "ModelShape",
    "PlanCost",
    "PlannedScale",
    "ScaleCost",
    "TransformerShape",
    "device_names",
    "load_profile",
    "plan_cost",
    "scale_costs",
]
