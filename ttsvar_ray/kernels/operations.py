"""The operations: a plain way in torch each, and the fused one by name.

Legend: R rows, n tokens, C width, H heads, D head width; B images, c channels, P pixels.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from ttsvar_ray.errors import ConfigurationError


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    fused: bool,
    added: Tensor | None = None,
) -> Tensor:
    """Return silu(group norm(x + added)) of images [B, c, height, width] in the dtype of x.

    Args:
        x: in any memory order; the fused result has its channels last.
        weight, bias: [c].
        groups: divides c.
        fused: statistics in float32 whatever the dtype; one reading for them, one for the values.
        added: [c], such as the bias of the convolution before; None adds nothing.
    """
    if fused:
        from ttsvar_ray.kernels import fused_images as kernels

        return kernels.group_norm_silu(x, weight, bias, added, groups=groups, eps=eps)
    x = x if added is None else x + added[:, None, None]
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def interleaved(x: Tensor, bias: Tensor, *, fused: bool) -> Tensor:
    """Return images [B, c, 2 H, 2 W], each of whose pixels comes from the part of its parity, plus a bias.

    Args:
        x: [B, 2 * 2 * c, H + 1, W + 1]: for rows of even and odd index, columns of even and odd index. The
            parts for odd ones lie one cell further, as a 2 x 2 convolution under a padding of 1 leaves them.
        bias: [c].
        fused: in one pass, channels last.
    """
    if fused:
        from ttsvar_ray.kernels import fused_images as kernels

        return kernels.interleaved(x, bias)
    parts = x.unflatten(1, (2, 2, -1))
    height, width = x.shape[2] - 1, x.shape[3] - 1
    y = x.new_empty(len(x), parts.shape[3], 2 * height, 2 * width)
    for low, right in itertools.product((0, 1), repeat=2):
        part = parts[:, low, right, :, low : low + height, right : right + width]
        y[:, :, low::2, right::2] = part + bias[:, None, None]
    return y


def residual_sum(x: Tensor, update: Tensor, bias: Tensor | None = None, *, fused: bool) -> Tensor:
    """Return x + update + bias of x [..., C] in the dtype of x, added in float32 and rounded once.

    Args:
        x: the residual stream, or images with channels last.
        update: [..., C] in any dtype.
        bias: [C]; None adds nothing.
        fused: as said; the plain way rounds after each sum, to the wider dtype.
    """
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.residual_sum(x, update, bias)
    return x + update if bias is None else x + update + bias


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float, dtype: torch.dtype, fused: bool
) -> Tensor:
    """Return (layer norm(x) without parameters) * (1 + scale) + shift of x [R, n, C].

    Args:
        scale, shift: float32 [R, 1, C], one for all tokens of a row.
        dtype: of the fused result; the plain one is float32, and is rounded where it is used.
    """
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.modulated_norm(x, scale, shift, eps=eps, dtype=dtype)
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift


def weighted_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype, fused: bool
) -> Tensor:
    """Return layer norm(x) * weight + bias of x [..., C].

    Args:
        weight, bias: [C], in any dtype.
        dtype: of the fused result; the plain one is float32, and is rounded where it is used.
    """
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.weighted_norm(x, weight, bias, eps=eps, dtype=dtype)
    return F.layer_norm(x, x.shape[-1:], weight.float(), bias.float(), eps)


def gated_sum(x: Tensor, update: Tensor, gate: Tensor, *, fused: bool) -> Tensor:
    """Return x + update * gate, float32 [R, n, C]; gate float32 [R, 1, C]."""
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.gated_sum(x, update, gate)
    return x + update * gate


def unit_rotated(
    qkv: Tensor, scale: Tensor, rope: Tensor | None, *, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [R, H, n, D] in the dtype of `qkv`.

    Queries and keys get unit length and their rotation in float32: rounding there moves every score.

    Args:
        qkv: [R, n, 3, H, D].
        scale: float32 [H], on the queries.
        rope: rotations of the positions, complex64 [n, D / 2]; None rotates nothing.
    """
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.unit_rotated(qkv, scale, rope)
    qk = F.normalize(qkv[:, :, :2].float(), dim=-1)
    if rope is not None:
        qk = _rotate(qk.flatten(2, 3), rope).unflatten(2, (2, qkv.shape[3]))
    q, k = qk.unbind(dim=2)
    q = q * scale[:, None]
    return (
        q.to(qkv.dtype).transpose(1, 2),
        k.to(qkv.dtype).transpose(1, 2),
        qkv[:, :, 2].transpose(1, 2),
    )


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of x float32 [R, n, heads, D] by a table complex64 [n, D / 2]."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None, :]).flatten(-2)


KERNELS = ("auto", "plain", "fused")
"""`auto` is fused on a CUDA device where Triton is installed and a trial agrees with the plain way."""

TRIAL_TOLERANCE = 0.05
"""Of a trial in bfloat16, relative to the largest number: wrong results are off by more."""

_log = logging.getLogger(__name__)


def uses_fused(setting: str, device: str) -> bool:
    """Return whether operations on a device are fused.

    Args:
        setting: one of `KERNELS`.
        device: "cpu", "cuda", "meta", ...

    Raises:
        ConfigurationError: fused kernels are asked for where there are none.
    """
    if setting not in KERNELS:
        raise ConfigurationError(f"engine.kernels: expected one of {', '.join(KERNELS)}, got {setting!r}")
    installed = importlib.util.find_spec("triton") is not None
    possible = device.startswith("cuda") and installed
    if setting == "fused" and not possible:
        reason = (
            "Triton is not installed here" if device.startswith("cuda") else f"the model is on {device!r}"
        )
        raise ConfigurationError(
            f"engine.kernels: 'fused' needs a CUDA device and the package triton, but {reason}; "
            "use 'auto' or 'plain'"
        )
    if setting == "auto" and possible:
        problem = trial(device)
        if problem is not None:
            _log.warning("engine.kernels: auto takes the plain kernels: %s", problem)
        return problem is None
    return possible and setting == "fused"


@functools.cache
def trial(device: str) -> str | None:
    """Compute each operation both ways on a device, once a process; return what is wrong, None if nothing."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    image, qkv = random(1, 64, 16, 16).bfloat16(), random(2, 4, 3, 2, 64).bfloat16()
    x, rope = random(2, 4, 128), torch.polar(torch.ones(4, 32), torch.ones(4, 32)).to(device)
    modulation, norm = random(2, 1, 3, 128).unbind(2), random(2, 64).bfloat16()
    weights = random(2, 128)

    def results(*, fused: bool) -> list[torch.Tensor]:
        return [
            group_norm_silu(image, norm[0], norm[1], groups=32, eps=1e-6, fused=fused, added=norm[0]),
            interleaved(image, norm[0, :16], fused=fused),
            weighted_norm(x, *weights, eps=1e-6, dtype=torch.bfloat16, fused=fused),
            residual_sum(x, x.bfloat16(), weights[0], fused=fused),
            modulated_norm(x, *modulation[:2], eps=1e-6, dtype=torch.bfloat16, fused=fused),
            gated_sum(x, x.bfloat16(), modulation[2], fused=fused),
            *unit_rotated(qkv, torch.ones(2, device=device), rope, fused=fused),
        ]

    try:
        pairs = list(zip(results(fused=True), results(fused=False), strict=True))
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything, and the plain way is as good
        return (
            f"a trial of the fused ones raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    apart = max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
    return None if apart <= TRIAL_TOLERANCE else f"a trial of the fused ones was off by {apart:.2g}"
