"""Counted costs: FLOPs, bytes and, with a device's rates, seconds.

Only `count`, which runs a model's modules on the meta device, and `probe`, which measures a CPU, need torch.
"""

from ttsvar_ray.costs.model import DecodeCost, JobNetworks, ModelCost, ScaleCost, TextCost, recorded_costs
from ttsvar_ray.costs.plan_cost import PlanCost, PlannedScale, image_costs, plan_cost, plan_record
from ttsvar_ray.costs.profile import DeviceProfile, device_names, load_profile

__all__ = [
    "DecodeCost",
    "DeviceProfile",
    "JobNetworks",
    "ModelCost",
    "PlanCost",
    "PlannedScale",
    "ScaleCost",
    "TextCost",
    "device_names",
    "image_costs",
    "load_profile",
    "plan_cost",
    "plan_record",
    "recorded_costs",
]
