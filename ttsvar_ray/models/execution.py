"""How a model computes on its device, where there is a choice that is no choice of images."""

from __future__ import annotations

from dataclasses import dataclass

RECORDED_TOKENS = 4096
"""Most tokens of a recorded pass, all rows together. Larger ones keep a GPU busy for longer than a host needs
to start their kernels, and would take memory of their own size."""


PACKED_BYTES = 3_000_000_000
"""Most bytes of the texts of a pass of fixed shapes that are packed (`models.infinity.text.TextMemory`); more
are gathered layer by layer, and such passes are not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a model computes.

    Attributes:
        kernels: "auto", "plain" or "fused"; see `ttsvar_ray.kernels`.
        cuda_graphs: "auto", on CUDA devices, "always" or "never"; see `models.recorded_steps`.
        fixed_shapes: every pass over so many rows has the same shapes, whatever the rows: texts are padded to
            the model's longest. For devices that choose kernels by shape; a CPU needs none of it.
        stops: scales, rising, after which trajectories are selected. Memory for keys and values is taken for
            all scales up to the next stop at once; without any, scale by scale.
    """

    kernels: str = "auto"
    cuda_graphs: str = "auto"
    fixed_shapes: bool = False
    stops: tuple[int, ...] = ()
