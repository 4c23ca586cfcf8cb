"""Kernels compiled for GPUs where there is none: they fit in registers and read in wide pieces.

Skipped where the package triton is not installed: it brings its own assembler. What the wrappers would launch
at the sizes of Infinity-2B is recorded and compiled; nothing runs.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ttsvar_ray.kernels import operations

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs the package triton, and not its interpreter",
)

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
ARCHITECTURES = ("80", "90", "100")
WIDEST = 16
"""Bytes that a thread can read or write at a time."""


class Launches:
    """Stands in for a kernel and keeps what it would be launched with."""

    def __init__(self, kernel: Any, kept: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel, self.kept = kernel, kept

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(0 < size < 2**31 for size in grid) and all(size < 65536 for size in grid[1:])
        return lambda *args, **named: self.kept.append(
            (self.kernel, {**dict(zip(self.kernel.arg_names, args, strict=False)), **named})
        )


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    from triton.runtime.jit import JITFunction

    from ttsvar_ray.kernels import fused, fused_images

    kept: list[tuple[Any, dict[str, Any]]] = []
    for module in (fused, fused_images):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction) and name != "_places":  # called by others, never launched
                monkeypatch.setattr(module, name, Launches(kernel, kept))
    return kept


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def infinity_2b() -> None:
    """Call every operation as a block and a decoder of Infinity-2B do, at 1024 x 1024."""
    rows, tokens, width, heads = 2, 4096, 2048, 16
    x = empty(rows, tokens, width, dtype=torch.float32)
    modulation = empty(rows, 1, 6, width, dtype=torch.float32)
    scale, shift, gate = modulation[:, :, 2], modulation[:, :, 4], modulation[:, :, 0]
    operations.modulated_norm(x, scale, shift, eps=1e-6, dtype=torch.bfloat16, fused=True)
    operations.weighted_norm(x, x[0, 0], x[0, 1], eps=1e-6, dtype=torch.bfloat16, fused=True)
    operations.residual_sum(x, empty(rows, tokens, width), fused=True)
    operations.gated_sum(x, empty(rows, tokens, width), gate, fused=True)
    qkv = empty(rows, tokens, 3, heads, width // heads)
    rope = empty(tokens, width // heads // 2, dtype=torch.complex64)
    for table in (rope, None):
        operations.unit_rotated(qkv, empty(heads, dtype=torch.float32), table, fused=True)
    for channels, side in ((512, 64), (512, 256), (256, 512), (256, 1024), (128, 1024)):
        image = empty(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        norm = empty(channels, dtype=torch.float32)
        for added in (None, empty(channels)):
            operations.group_norm_silu(image, norm, norm, added=added, groups=32, eps=1e-6, fused=True)
        pixels = image.permute(0, 2, 3, 1)
        operations.residual_sum(pixels, pixels, empty(channels), fused=True)
        if side < 1024:
            parts = empty(1, 4 * channels, side + 1, side + 1).contiguous(memory_format=torch.channels_last)
            operations.interleaved(parts, empty(channels), fused=True)


def compiled(kernel: Any, named: dict[str, Any], architecture: str) -> tuple[str, bytes]:
    """Return the code and the binary of one launch for an architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {"num_warps": named["num_warps"]} if "num_warps" in named else {}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = named[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
            continue
        aligned = isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
        signature[parameter.name] = (
            TYPES[value.dtype] if isinstance(value, Tensor) else ("i32" if isinstance(value, int) else "fp32")
        )
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", int(architecture), 32)
    made = triton.compile(source, target=target, options=options).asm
    return str(made["ptx"]), bytes(made["cubin"])


def bytes_at_a_time(code: str) -> tuple[int, int]:
    """Return the bytes of the widest load and of the widest store."""

    def widest(kind: str) -> int:
        found = re.findall(rf"{kind}\.global(?:\.[a-z0-9_:]+)*?(?:\.v(\d))?\.b(\d+)", code)
        return max(int(vector or 1) * int(bits) // 8 for vector, bits in found)

    return widest("ld"), widest("st")


def spilled(binary: bytes, tmp_path: Path) -> int:
    """Return the bytes of each thread that do not fit in registers, and lie in memory."""
    import triton

    path = tmp_path / "kernel.cubin"
    path.write_bytes(binary)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    told = subprocess.run(
        [str(tool), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:\d+ STACK:(\d+)", told)
    assert found is not None, told
    return int(found[1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_keep_to_registers_and_read_in_wide_pieces(
    architecture: str, launches: list[tuple[Any, dict[str, Any]]], tmp_path: Path
) -> None:
    infinity_2b()
    assert {kernel.fn.__name__ for kernel, _ in launches} == {
        *("_scaled_norm", "_gated_sum", "_residual_sum", "_unit_rotated"),
        *("_part_moments", "_group_scales", "_scaled_silu", "_interleaved"),
    }
    for kernel, named in launches:
        name = kernel.fn.__name__
        code, binary = compiled(kernel, named, architecture)
        assert spilled(binary, tmp_path) == 0, name
        if name == "_group_scales":
            continue  # a few numbers of each group
        load, store = bytes_at_a_time(code)
        if name != "_part_moments":
            assert (load, store) == (WIDEST, WIDEST), name
        else:  # writes two numbers a group; a group of four channels is 8 bytes of bfloat16
            assert load == min(WIDEST, 2 * named["each"]), name
