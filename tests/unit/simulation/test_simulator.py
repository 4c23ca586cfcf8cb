"""The simulator: nothing is lost, nothing is free, and the same seed gives the same run."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest

from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Workload
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.simulation import simulated_job
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.simulation.result import SimulationResult
from ttsvar_ray.simulation.run import seconds_per_prompt, simulate
from ttsvar_ray.simulation.settings import CoordinatorCosts, SimulationSettings
from ttsvar_ray.types import RewardCombination

SCALES = tuple((k, k) for k in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
TTS_VAR = compile_plan(scale_schedule=SCALES, strategy="tts-var", n=1)
RAW = compile_plan(scale_schedule=SCALES, strategy="raw", n=1)
WORKLOAD = Workload(
    source="by hand, like a 2B model on a large GPU",
    segments=(
        SegmentLoad(tokens=21, batch_seconds=0.18, row_seconds=0.005),
        SegmentLoad(tokens=244, batch_seconds=0.18, row_seconds=0.005, replay_seconds=0.05),
        SegmentLoad(tokens=256, batch_seconds=0.12, row_seconds=0.009, replay_seconds=0.1),
        SegmentLoad(tokens=2000, batch_seconds=0.12, row_seconds=0.06, replay_seconds=0.11),
        SegmentLoad(tokens=8000, batch_seconds=0.11, row_seconds=0.41, replay_seconds=0.17),
    ),
)
RAW_WORKLOAD = Workload(
    source="by hand", segments=(SegmentLoad(tokens=10521, batch_seconds=0.5, row_seconds=0.25),)
)
FREE = CoordinatorCosts(message_seconds=0, shard_seconds=0, cluster_seconds=0, resample_seconds=0)
QUIET: dict[str, Any] = {
    "noise": 0.0,
    "start_seconds": 0.0,
    "start_spread_seconds": 0.0,
    "call_seconds": 0.0,
    "driver_seconds": 0.0,
    "coordinator": FREE,
}


def run(
    *,
    plan: Plan = TTS_VAR,
    workload: Workload = WORKLOAD,
    spread: Any = "auto",
    gpus: int = 4,
    prompts: int = 120,
    rows: int = 8,
    **settings: Any,
) -> SimulationResult:
    return simulate(
        plan=plan,
        workload=workload,
        settings=SimulationSettings(gpus=gpus, prompts=prompts, rows=rows, **settings),
        coordinator=CoordinatorSettings(spread=spread),
    )


FAULTY: dict[str, Any] = {
    "failures_per_gpu_hour": 60.0,
    "failures_per_node_hour": 6.0,
    "gpus_per_node": 4,
    "stragglers": 0.25,
    "restart_seconds": 20.0,
}


def test_one_worker_without_noise_takes_the_sum_of_its_predictions() -> None:
    result = run(plan=RAW, workload=RAW_WORKLOAD, gpus=1, prompts=10, rows=4, **QUIET)
    # Batches of 4, 4 and 2 trajectories.
    assert result.makespan_seconds == pytest.approx(3 * 0.5 + 10 * 0.25)
    assert result.utilisation == pytest.approx(1.0)
    assert result.batches == 3
    assert result.images == 10


def test_one_prompt_alone_takes_one_batch_a_segment() -> None:
    result = run(gpus=1, prompts=1, **QUIET)
    expected = sum(WORKLOAD.seconds(segment.index, segment.population) for segment in TTS_VAR.segments)
    assert result.makespan_seconds == pytest.approx(expected)
    assert result.latency.most == pytest.approx(expected)
    assert result.replays == 0


def test_waiting_for_the_coordinator_is_counted_as_such() -> None:
    slow = CoordinatorCosts(message_seconds=0.5, shard_seconds=0, cluster_seconds=0, resample_seconds=0)
    result = run(gpus=1, prompts=1, **{**QUIET, "coordinator": slow})
    # Joining, then four answers with a selection each; the lease and the last answer come on top.
    assert result.seconds["waiting for a decision"] == pytest.approx(0.5 + 4 * 0.5)
    assert result.seconds["no prompts"] == pytest.approx(0.5)
    assert result.seconds["tail of the run"] == pytest.approx(0.5)
    quick = run(gpus=1, prompts=1, **QUIET)
    assert result.makespan_seconds > quick.makespan_seconds + 4 * 0.5
    assert result.coordinator.most > 0.3


@pytest.mark.parametrize("spread", ["auto", 1, 3])
@pytest.mark.parametrize("faults", [{}, FAULTY], ids=["quiet", "faulty"])
def test_every_prompt_is_finished_once_and_every_second_has_one_reason(
    spread: Any, faults: dict[str, Any]
) -> None:
    result = run(spread=spread, gpus=12, workers_per_cell=4, rows_per_part=16, **faults)
    assert result.prompts == 120
    assert result.failed == 0
    assert result.images == 120
    assert sum(result.seconds.values()) == pytest.approx(12 * result.makespan_seconds)
    assert min(result.seconds.values()) >= -1e-6
    assert 0 < result.goodput_utilisation <= result.utilisation <= 1
    if not faults:
        assert result.workers_lost == 0
        assert result.seconds["lost"] == pytest.approx(0, abs=1e-6)
        assert result.seconds["restarting"] == 0


def test_the_timeline_adds_up_to_the_totals() -> None:
    result = run(gpus=12, workers_per_cell=4, **FAULTY)
    assert len({len(bins) for bins in result.timeline.values()}) == 1
    for reason, seconds in result.seconds.items():
        if reason not in ("useful", "lost"):
            assert sum(result.timeline[reason]) == pytest.approx(seconds)
    computed = result.seconds["useful"] + result.seconds["lost"]
    assert sum(result.timeline["useful"]) + sum(result.timeline["lost"]) == pytest.approx(computed)


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    first, again, other = (run(gpus=8, workers_per_cell=4, seed=seed, **FAULTY) for seed in (1, 1, 2))
    assert first.to_json() == again.to_json()
    assert first.makespan_seconds != other.makespan_seconds


def test_losses_cost_work_and_replays() -> None:
    quiet = run(gpus=8, prompts=400)
    faulty = run(gpus=8, prompts=400, failures_per_gpu_hour=30.0, restart_seconds=10.0)
    assert quiet.workers_lost == 0
    assert faulty.workers_lost > 0
    assert faulty.seconds["lost"] > quiet.seconds["lost"]
    assert faulty.replays > quiet.replays
    assert faulty.goodput_utilisation < quiet.goodput_utilisation
    assert faulty.prompts == quiet.prompts == 400


def test_stragglers_slow_a_run_down() -> None:
    usual = run(gpus=8, prompts=300)
    slow = run(gpus=8, prompts=300, stragglers=0.5, straggler_factor=2.0)
    assert slow.prompts_per_second < 0.9 * usual.prompts_per_second


def test_more_gpus_never_finish_later() -> None:
    makespans = [run(gpus=gpus, prompts=200).makespan_seconds for gpus in (1, 2, 4, 8, 16)]
    assert all(fewer > more for fewer, more in itertools.pairwise(makespans))


def test_throughput_stays_below_the_ideal() -> None:
    result = run(gpus=4, prompts=300)
    ideal = 4 / seconds_per_prompt(TTS_VAR, WORKLOAD, rows=8)
    assert result.ideal_prompts_per_second == pytest.approx(ideal)
    assert result.prompts_per_second < ideal


def test_wide_prompts_are_faster_alone_and_move_more() -> None:
    narrow = run(gpus=4, prompts=1, rows=2, spread=1, **QUIET)
    wide = run(gpus=4, prompts=1, rows=2, spread=4, **QUIET)
    assert wide.latency.most < narrow.latency.most
    assert wide.moved + wide.replays > narrow.moved + narrow.replays
    assert wide.bytes_moved.bits_sent > 0


def test_a_slow_writer_holds_the_run_up() -> None:
    free = run(gpus=4, prompts=200, rows_per_part=16)
    slow = run(gpus=4, prompts=200, rows_per_part=16, sink_bytes_per_second=1e6)
    assert slow.makespan_seconds > 200 * 1.5
    assert slow.makespan_seconds > 2 * free.makespan_seconds
    assert slow.writer_load > 0.8


def test_noise_has_the_mean_that_was_predicted() -> None:
    calm = run(gpus=1, prompts=200, noise=0.0)
    noisy = run(gpus=1, prompts=200, noise=0.3)
    assert noisy.seconds["useful"] == pytest.approx(calm.seconds["useful"], rel=0.06)
    assert noisy.seconds["useful"] != calm.seconds["useful"]


@pytest.mark.parametrize("selections", ["real", "cheap"])
def test_every_kind_of_plan_runs_with_both_kinds_of_selections(selections: str) -> None:
    ensemble = dataclasses.replace(TTS_VAR, reward_members=2, combination=RewardCombination.SOFTMAX)
    joint = dataclasses.replace(TTS_VAR, joint_component=ComponentSign.DETERMINISTIC)
    for plan in (TTS_VAR, ensemble, joint):
        result = run(plan=plan, gpus=2, prompts=8, selections=selections)
        assert (result.prompts, result.failed) == (8, 0)


def test_weights_beyond_any_float_are_drawn_by() -> None:
    sharp = compile_plan(scale_schedule=TTS_VAR.scale_schedule, lambda_=1e5)
    assert run(plan=sharp, gpus=1, prompts=2, selections="cheap").failed == 0


def test_the_coordinators_can_be_timed() -> None:
    ticks = itertools.count()
    result = simulate(
        plan=TTS_VAR,
        workload=WORKLOAD,
        settings=SimulationSettings(gpus=2, prompts=4, rows=8),
        coordinator=CoordinatorSettings(),
        stopwatch=lambda: float(next(ticks)),
    )
    assert result.measured_decision_seconds == 1.0


def test_results_are_json() -> None:
    result = run(gpus=2, prompts=4)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["settings"]["gpus"] == 2
    assert values["measured_decision_seconds"] is None
    assert values["settings"]["sink_bytes_per_second"] is None
    assert len(values["timeline"]["useful"]) > 0
    assert "timeline" not in result.to_json(timeline=False)


def test_a_workload_of_another_plan_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="expected a workload of the plan's 5 segments, got one of 1"
    ):
        run(workload=RAW_WORKLOAD)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gpus", 0, "gpus: expected at least 1, got 0"),
        ("noise", -0.1, "noise: expected a finite number of at least 0"),
        ("stragglers", 1.5, "stragglers: expected a share in 0..1"),
        ("straggler_factor", 0.5, "straggler_factor: expected at least 1"),
        ("tick_seconds", 0.0, "tick_seconds: expected more than 0"),
        ("sink_bytes_per_second", 0.0, "sink_bytes_per_second: expected more than 0"),
        ("memory_bytes", 0, "memory_bytes: expected at least 1 or None"),
        ("selections", "none", 'selections: expected "real" or "cheap"'),
        ("coordinator", dataclasses.replace(FREE, shard_seconds=-1), "shard_seconds: expected at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(**{name: value})


def test_rounds_come_in_the_shares_of_the_settings_and_leave_no_worker_idle() -> None:
    settings = ["strategy.name=adaptive", "strategy.stop_at=3", "strategy.reject_below={6: -3}"]
    job = simulated_job(
        load_config(
            None,
            [*settings, "simulation.abandoned=0.5", "simulation.satisfied=1", "strategy.max_rounds=30"],
            needs_files=False,
        )
    )
    loads = tuple(SegmentLoad(tokens=10, batch_seconds=0.0, row_seconds=seconds) for seconds in (1.0, 3.0))
    result = run(
        plan=job.plan, workload=Workload(source="by hand", segments=loads), gpus=8, prompts=400, **QUIET
    )
    # Two rounds begun for one that is finished, on average.
    assert result.makespan_seconds * 8 * result.utilisation == pytest.approx(400 * (2 * 1.0 + 3.0), rel=0.1)
    assert result.utilisation > 0.95
