"""Whether a caption is surely false of a scene: the labels of the reward's training."""

from __future__ import annotations

from ttsvar_ray.shapes.captions import Caption, Kind
from ttsvar_ray.shapes.scene import Scene, clear_relation


def is_false(scene: Scene, caption: Caption) -> bool:
    """Whether a caption is surely false of a scene; False also where GenEval's rules leave room for doubt."""
    shapes = [item.shape for item in scene.objects]
    pairs = {(item.shape, item.color) for item in scene.objects}
    if caption.kind is Kind.COUNTING:
        return shapes.count(caption.claims[0].shape) != caption.claims[0].count
    for claim in caption.claims:
        if claim.shape not in shapes or (claim.color is not None and (claim.shape, claim.color) not in pairs):
            return True
    if caption.relation is None:
        return False
    first, second = (claim.shape for claim in caption.claims)
    if shapes.count(first) != 1 or shapes.count(second) != 1:
        return False
    a, b = (scene.objects[shapes.index(shape)] for shape in (first, second))
    shown = clear_relation(a, b)
    return shown is not None and shown is not caption.relation
