"""CUDA graphs against the same passes without them: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_networks import NetworkSizes, random_model
from tests.gpu.test_infinity_on_gpu import MINIATURE
from tests.unit.models.test_recorded_steps import play
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.protocol import Execution

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

TEXTS = ("a red circle above two green square", "a blue ring on grass beside a red square " * 8)


@pytest.fixture(scope="module")
def model() -> InfinityModel:
    sizes = NetworkSizes(preset=MINIATURE.preset, text_encoder=MINIATURE.text_encoder)
    resolution = published_resolution("0.06M")
    return random_model(sizes, resolution, device=torch.device("cuda"), dtype=torch.bfloat16)


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_graphs_give_the_same_bits(model: InfinityModel, kernels: str, fixed_shapes: bool) -> None:
    def execution(cuda_graphs: str) -> Execution:
        last = model.num_scales - 1
        return Execution(
            kernels=kernels, cuda_graphs=cuda_graphs, fixed_shapes=fixed_shapes, stops=(1, 4, last)
        )

    model.set_execution(execution("never"))
    expected = play(model, TEXTS)
    model.set_execution(execution("always"))
    for repeat in range(3):
        found = play(model, TEXTS)
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine.cache.tensor, theirs.cache.tensor), repeat
            assert all(torch.equal(a, b) for a, b in zip(mine.bits, theirs.bits, strict=True)), repeat
    assert model.recorded is not None
    assert model.recorded.played > 50
