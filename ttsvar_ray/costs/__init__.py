"""Counted costs: FLOPs, bytes and, with a device's rates, seconds. Free of torch: shapes are enough."""

from ttsvar_ray.costs.plan_cost import ComponentFlops, PlanCost, PlannedScale, plan_cost
from ttsvar_ray.costs.shape import ScaleCost, TransformerShape, scale_costs

__all__ = [
    "ComponentFlops",
    "PlanCost",
    "PlannedScale",
    "ScaleCost",
    "TransformerShape",
    "plan_cost",
    "scale_costs",
]
