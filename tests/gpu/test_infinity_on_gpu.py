"""Full-size models with random weights on a GPU: end to end, memory as planned, rows.

`pytest -m gpu tests/gpu` on a machine with a GPU of 24 GB or more; no weights and no ray are needed. The flow
itself is tried in miniature on the CPU in the default run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import T5Config

from benchmarks import limit
from benchmarks.gpu_infinity import Case, measure
from benchmarks.parts import scale_seconds
from benchmarks.random_networks import NARROW_DINOV2, NARROW_REWARD, NetworkSizes, random_model
from tests.support.published_infinity import TINY
from tests.support.recorders import PlainRecorder
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.presets import PRESETS
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.protocol import Execution

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

MINIATURE = NetworkSizes(
    preset=TINY,
    text_encoder=T5Config(
        vocab_size=32,
        d_model=2048,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    ),
    reward=NARROW_REWARD,
    extractor=NARROW_DINOV2,
)


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> list[Execution]:
    """Return how models are told to compute, as it is said."""
    monkeypatch.setitem(PRESETS, TINY.name, TINY)
    told: list[Execution] = []
    choose = InfinityModel.set_execution

    def noted(model: InfinityModel, execution: Execution) -> None:
        told.append(execution)
        choose(model, execution)

    monkeypatch.setattr(InfinityModel, "set_execution", noted)
    return told


def test_the_measurement_runs_in_miniature_on_a_cpu(executions: list[Execution]) -> None:
    done: list[tuple[str, list[str], bool]] = []
    result = measure(
        MINIATURE,
        resolution="0.06M",
        cases={"one": Case(), "raw, two together": Case(n=None, together=2)},
        device=torch.device("cpu"),
        dtype=torch.float32,
        repeats=1,
        warm_up=0,
        baseline=1,
        rows=(1,),
        decoded={"full": (1,), "selector": (2,)},
        part_repeats=1,
        on_progress=lambda name, so_far: done.append((name, list(so_far["runs"]), "parts" in so_far)),
    )
    assert [name for name, _, _ in done] == ["published loop", "one", "raw, two together", "parts", "rows"]
    assert done[1][1:] == (["one"], False) and done[3][2], "what is measured can be written at once"
    stops = [execution.stops for execution in executions]
    assert stops[0] == () and stops[2] == (6,), "the published loop, then raw"
    assert stops[1] == stops[3] == stops[4] and len(stops[1]) > 1, "a search, parts, deterministic passes"
    assert [execution.fixed_shapes for execution in executions] == [False] * 4 + [True]
    run, together = result["runs"].values()
    assert (run["kept_images"], run["drawn_images"]) == (1, 1)
    assert (together["kept_images"], together["prompts_together"]) == (1, 2)
    assert run["passes_played_from_recordings"] == 0, "there are none on a CPU"
    official = result["published_loop"][-1]
    assert official["decoded_images"] > 20, "every live trajectory is decoded at every selection"
    assert result["kernels"] == "plain"
    assert run["peak_bytes"] == 0, "a CPU has no account of allocated bytes"
    scales = result["parts"]["milliseconds of each scale, by trajectories"]["1"]
    assert len(scales) == 7 and all(each > 0 for each in scales)
    assert all(each >= 0 for each in result["parts"]["milliseconds"].values())
    rows = result["rows"]
    assert rows["repeats_to_the_bit"]
    assert rows["largest_logit_difference_over_deviation"] == [0.0] * 7, "rows are independent on a CPU"
    assert rows["share_of_bits_drawn_otherwise"] == [0.0] * 7
    fixed = result["deterministic"]
    assert fixed["same_bytes"]
    assert fixed["parents_rebuilt"] > 0


def test_scales_are_timed_as_a_search_runs_them(executions: list[Execution]) -> None:
    result = limit.measure(
        MINIATURE, resolution="0.06M", device=torch.device("cpu"), dtype=torch.float32, rows=(1,)
    )
    (execution,) = executions
    assert len(execution.stops) > 1 and execution.stops[-1] == 6
    assert len(result["scales by trajectories"]["1"]) == 7


def test_no_scale_is_timed_while_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recording(PlainRecorder):
        def record(self, call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
            time.sleep(0.5)
            return super().record(call)

    sizes = NetworkSizes(preset=MINIATURE.preset, text_encoder=MINIATURE.text_encoder)
    model = random_model(
        sizes, published_resolution("0.06M"), device=torch.device("cpu"), dtype=torch.float32
    )
    model.record_passes(Recording())
    seconds = scale_seconds(model, 1, "a red circle", repeats=1)
    assert model.recorded is not None and model.recorded.played > 0
    assert all(each is not None and each < 0.5 for each in seconds)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    return measure(
        NetworkSizes(preset=PRESETS["infinity-2b"]),
        resolution="1M",
        cases={"N=1": Case(), "N=2": Case(n=2)},
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        repeats=1,
        warm_up=2,
        part_repeats=0,
    )


@needs_gpu
@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_2b_runs_end_to_end_at_1m(measured: dict[str, Any]) -> None:
    found = {name: (run["drawn_images"], run["kept_images"]) for name, run in measured["runs"].items()}
    assert found == {"N=1": (1, 1), "N=2": (2, 1)}, "the best is kept"
    assert all(run["passes_played_from_recordings"] > 10 for run in measured["runs"].values())


@needs_gpu
@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_peak_memory_is_what_the_plan_says(measured: dict[str, Any]) -> None:
    for run in measured["runs"].values():
        assert run["peak_over_plan"] == pytest.approx(1.0, abs=0.05), run


@needs_gpu
@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_rows_depend_on_their_batch_by_rounding_only(measured: dict[str, Any]) -> None:
    rows = measured["rows"]
    assert rows["repeats_to_the_bit"], "the same batch gives the same bits"
    assert max(rows["largest_logit_difference_over_deviation"]) < 0.5
    assert max(rows["share_of_bits_drawn_otherwise"]) < 0.02


@needs_gpu
@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_deterministic_passes_give_the_same_bytes_beside_anything(measured: dict[str, Any]) -> None:
    fixed = measured["deterministic"]
    assert fixed["parents_rebuilt"] > 0
    assert fixed["same_bytes"]
