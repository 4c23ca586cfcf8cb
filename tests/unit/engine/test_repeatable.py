"""What is set in a GPU worker's process: looked at in a process of its own, for it holds for good."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import os
import torch
from ttsvar_ray.engine.device import choose_repeatable_kernels

choose_repeatable_kernels()
assert torch.are_deterministic_algorithms_enabled()
assert torch.is_deterministic_algorithms_warn_only_enabled()
assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
assert not torch.utils.deterministic.fill_uninitialized_memory
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
print("repeatable")
"""


def test_a_process_is_limited_to_repeatable_kernels() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.stdout == "repeatable\n", done.stderr
