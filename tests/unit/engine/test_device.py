"""How a process is prepared for its device.

Repeatable kernels are undone here: they would hold for all tests that follow. Kept memory is seen from
outside, in page faults and in what the process holds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.utils.deterministic

from ttsvar_ray.engine.device import prepare_process

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc alone")

TENSORS = """
import resource, torch
from ttsvar_ray.engine.device import free_device_memory, prepare_process

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

prepare_process("cpu", threads=1, deterministic=False)
for _ in range(16):  # the first few leave bits behind that malloc keeps for small ones
    torch.ones(2**24)  # 64 MiB, freed at once
first = faults()
for _ in range(8):
    torch.ones(2**24)
kept = held()
free_device_memory()
print(faults() - first, kept - held())
"""
PAGES = 8 * 32
"""Of eight tensors, where pages have 2 MiB; 4 KiB make 512 times as many."""


def after_eight_tensors(**environment: str) -> tuple[int, int]:
    """Return page faults of eight large tensors, and MiB that `free_device_memory` gave back."""
    done = subprocess.run(
        [sys.executable, "-c", TENSORS],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    faults, freed = done.stdout.split()
    return int(faults), int(freed)


@of_glibc
def test_freed_memory_is_kept_until_memory_is_short() -> None:
    faults, freed = after_eight_tensors()
    assert faults < PAGES / 2
    assert freed >= 60


@of_glibc
def test_the_environment_has_the_last_word_on_malloc() -> None:
    faults, freed = after_eight_tensors(MALLOC_TRIM_THRESHOLD_="131072")
    assert faults >= PAGES
    assert freed < 60


def test_a_process_is_limited_to_repeatable_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        prepare_process("cuda", threads=torch.get_num_threads(), deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
