"""Whatever happens, and in whatever order, the coordinator's results are those of a sequential run.

Each schedule is a seed: it draws the plan, the settings, what segments cost, the workers and their memory,
and then event after event: late and repeated results, deaths, hangs, joins, drains, withdrawn prompts, slow
workers, lost state, failures of every kind. A failing seed is named in the error; `TTSVAR_SCHEDULE=<seed>`
runs it alone.

`TTSVAR_SCHEDULES=1000000` runs a million; in pieces, on as many cores or days as there are, with
`TTSVAR_SCHEDULES_FROM=<first seed>`: each piece runs the seeds from there up to `TTSVAR_SCHEDULES`.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from typing import Any

import numpy as np
import pytest

from tests.support.dummy_cluster import DummyCluster
from tests.support.dummy_engine import Reference, reference_outcome
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.messages import FailureKind, ShardTask
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Workload
from ttsvar_ray.coordination.workers import MemoryModel
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search.operators.protocol import Choice
from ttsvar_ray.search.plan import Plan, Selection
from ttsvar_ray.search.selection import select
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import PotentialKind

RUN_SEED = 7
PROMPTS = make_prompts(6)
SCALES_5 = tuple((k, k) for k in (1, 2, 3, 4, 6))
SCALES_13 = tuple((k, k) for k in (1, 1, 2, 2, 3, 3, 4, 4, 6, 6, 8, 8, 12))
PLANS = (
    compile_plan(scale_schedule=SCALES_13, strategy="tts-var", n=1, cluster_restarts=1),
    compile_plan(scale_schedule=SCALES_5, strategy="raw", n=1),
    compile_plan(scale_schedule=SCALES_5, strategy="best-of-n", n=5),
    compile_plan(
        scale_schedule=SCALES_5,
        strategy="tts-var",
        batch_schedule=[7, 4, 4, 2, 2],
        cluster_scales=[1],
        resample_scales=[3],
        potential=PotentialKind.MAX,
        cluster_restarts=1,
    ),
    compile_plan(
        scale_schedule=SCALES_5,
        strategy="tts-var",
        batch_schedule=[12, 9, 6, 1, 1],
        cluster_scales=[1],
        resample_scales=[2, 3],
        cluster_restarts=1,
    ),
    # Rewards are even in [0, 1): of these rounds some are abandoned, some stop, and some prompts end with
    # nothing but abandoned rounds.
    compile_plan(
        scale_schedule=SCALES_5, strategy="adaptive", max_rounds=4, reject_below={2: 0.5}, stop_at=0.6
    ),
    compile_plan(
        scale_schedule=SCALES_5,
        strategy="adaptive",
        n=2,
        max_rounds=3,
        growth=[1, 2, 3],
        reject_below={0: 0.4, 3: 0.8},
        stop_at=0.95,
    ),
    compile_plan(
        scale_schedule=SCALES_5,
        strategy="adaptive",
        max_rounds=3,
        growth=[1, 2],
        batch_schedule=[5, 3, 3, 1, 1],
        cluster_scales=[1],
        resample_scales=[3],
        reject_below={1: 0.8, 3: 0.9},
        stop_at=0.7,
        cluster_restarts=1,
    ),
)
BLOCKS = 10
FIRST = int(os.environ.get("TTSVAR_SCHEDULES_FROM", "0"))
SCHEDULES = int(os.environ.get("TTSVAR_SCHEDULES", "10000"))
ENOUGH_ATTEMPTS = 10_000
STEPS_WITH_FAULTS = 120
MOST_STEPS = 20_000
CEILING_SECONDS = 20.0
MOST_FAILURES = 5
SLOWDOWNS = (0.1, 1.0, 1.0, 5.0, 50.0)


_REMEMBERED: dict[Any, Choice] = {}


def remembered_select(plan: Plan, selection: Selection, **seen: Any) -> Choice:
    """Compute each selection once: schedules differ in order, not in what a selection sees."""
    features = seen["features"]
    # Plans of rounds are kept with the plans above, so that no other ever has their place.
    key = (
        id(plan),
        selection.scale_index,
        seen["prompt_key"],
        seen["run_seed"],
        seen["round_index"],
        None if features is None else features.tobytes(),
        np.asarray(seen["reward_history"]).tobytes(),
    )
    if key not in _REMEMBERED:
        _REMEMBERED[key] = select(plan, selection, **seen)
    return _REMEMBERED[key]


@functools.cache
def expected(plan: Plan, prompt_key: str) -> Reference:
    return reference_outcome(plan, RUN_SEED, prompt_key)


def seen_in(result: PromptResult) -> list[tuple[object, ...]]:
    assert [image.rank for image in result.images] == list(range(len(result.images)))
    return [
        (i.image.payload, i.reward, i.reward_history, i.lineage, i.bits, i.round_index) for i in result.images
    ]


def check_result(plan: Plan, settings: CoordinatorSettings, result: PromptResult | PromptFailure) -> None:
    assert isinstance(result, PromptResult), f"gave up {result.prompt.key}: {result}"
    whole = expected(plan, result.prompt.key)
    assert seen_in(result) == (whole.images if settings.keep == "all" else whole.images[:1])
    assert (result.rounds, result.stopped) == (whole.rounds, whole.stopped)
    assert result.trajectories == whole.trajectories
    assert len(result.trace) == whole.selections
    # Every report was taken in exactly once: shards of one slot at least, of all slots at most.
    assert len(plan.segments) <= result.counters["shards"] <= sum(whole.trajectories)
    assert result.seconds > 0


def draw_settings(rng: random.Random) -> CoordinatorSettings:
    return CoordinatorSettings(
        spread=rng.choice(["auto", "auto", 1, 2, 3]),
        batches_in_flight=rng.choice([1, 2, 2, 3]),
        max_attempts=ENOUGH_ATTEMPTS,
        live_rows=rng.choice([None, None, 1, 9, 20]),
        keep=rng.choice(["best", "all"]),
        batch_tokens=rng.choice([None, None, 1, 40, 300]),
        deadline_floor_seconds=1.0,
        deadline_ceiling_seconds=CEILING_SECONDS,
    )


def draw_workload(rng: random.Random, plan: Plan) -> Workload:
    """Return loads in any proportion: states that grow, shrink or are nothing, and any seconds."""
    loads = []
    pass_rows = rng.choice([0, 0, 0, 1, 3, 8])
    for segment in plan.segments:
        tokens = sum(h * w for h, w in plan.scale_schedule[segment.first_scale : segment.last_scale + 1])
        held = rng.choice([0, 1, rng.randint(1, 30), 10 * (segment.index + 1)])
        loads.append(
            SegmentLoad(
                tokens=tokens,
                held_bytes=0 if segment.is_last else held,
                running_bytes=rng.choice([0, held, held + rng.randint(0, 20)]),
                batch_seconds=rng.choice([0.0, 0.1]),
                row_seconds=rng.choice([0.0, 0.1, 1.0]),
                replay_seconds=rng.choice([0.0, 0.1, 1.0]),
                pass_rows=pass_rows,
            )
        )
    return Workload(segments=tuple(loads), source="drawn by the test")


class Schedule:
    """One random run."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.plan = self.rng.choice(PLANS)
        self.settings = draw_settings(self.rng)
        self.workload = draw_workload(self.rng, self.plan) if self.rng.random() < 0.7 else None
        self.fault_rate = self.rng.choice([0.0, 0.0, 0.05, 0.3])
        self.disturbance_rate = self.rng.choice([0.0, 0.02, 0.1])
        self.faults_left = STEPS_WITH_FAULTS
        self.next_name = 0
        self.cluster = DummyCluster(
            plan=self.plan,
            run_seed=RUN_SEED,
            settings=self.settings,
            prompts=PROMPTS[: self.rng.randint(1, len(PROMPTS))],
            fault_of=self.fault,
            workload=self.workload,
            selections=remembered_select,
        )
        self.cluster.checks_rows = self.fault_rate == 0

    def fault(self, task: ShardTask) -> FailureKind | None:
        if self.faults_left > 0 and self.rng.random() < self.fault_rate:
            return self.rng.choice(list(FailureKind))
        return None

    def draw_memory(self) -> int | None:
        """Return as little as just suffices, or more; None, where rows alone count; too little at times."""
        if self.workload is None or self.rng.random() < 0.1:
            return None
        least = MemoryModel.in_bytes(self.workload).least
        if self.rng.random() < 0.03 and least > 0:
            return least - 1
        return self.rng.choice([least, least + self.rng.randint(0, 40), 3 * least + 20, 100 * least + 100])

    def join(self, name: str | None = None) -> None:
        if name is None:
            names = [f"w{i}" for i in range(self.next_name) if f"w{i}" not in self.cluster.workers]
            if names and self.rng.random() < 0.5:
                name = self.rng.choice(names)
            else:
                name = f"w{self.next_name}"
                self.next_name += 1
        self.cluster.join(
            name, rows=self.rng.choice([1, 2, 3, 5, 8, 16, 40]), memory_bytes=self.draw_memory()
        )

    def choices(self) -> list[tuple[str, Any]]:
        """Return what can happen next by itself."""
        cluster = self.cluster
        choices: list[tuple[str, Any]] = [("deliver", i) for i in range(len(cluster.mail))]
        for name, worker in cluster.workers.items():
            if worker.is_abandoned:
                choices.append(("bury", name))
            if worker.queue and not worker.is_hung:
                choices.append(("work", name))
        choices += [("lease", None)] * len(cluster.lease_requests)
        return choices

    def run(self) -> None:
        cluster, rng = self.cluster, self.rng
        for _ in range(rng.randint(1, 4)):
            self.join()
        for step in range(MOST_STEPS):
            self.faults_left -= 1
            if self.faults_left > 0 and rng.random() < self.disturbance_rate:
                self.disturb()
                if step % 8 == 0:
                    cluster.check_accounts()
            while not any(not w.is_draining and not w.is_abandoned for w in cluster.workers.values()):
                self.join()
            choices = self.choices()
            if choices:
                self.happen(*rng.choice(choices))
            elif any(worker.is_hung and worker.in_flight for worker in cluster.workers.values()):
                cluster.tick(CEILING_SECONDS / 4)
            else:
                break
        cluster.check_accounts()
        cluster.check_finished()
        for outcome in cluster.outcomes.values():
            check_result(self.plan, self.settings, outcome)

    def happen(self, kind: str, what: Any) -> None:
        cluster, rng = self.cluster, self.rng
        if kind == "deliver":
            twice = self.faults_left > 0 and rng.random() < 0.1
            cluster.deliver(what, keep_copy=twice)
        elif kind == "work":
            cluster.work(what)
        elif kind == "bury":
            cluster.lose(what)
        else:
            cluster.lease(most=rng.choice([1, 2, 100]))

    def disturb(self) -> None:
        cluster, rng = self.cluster, self.rng
        kind = rng.choice(
            ["lose", "lose", "join", "drain", "forget", "rejoin", "hang", "hang", "tick", "tick", "withdraw"]
            + ["slow down"] * 3
        )
        if kind == "join" and len(cluster.workers) < 6:
            self.join()
        elif kind == "tick":
            cluster.tick(rng.choice([0.5, 3.0, CEILING_SECONDS]))
        elif kind == "withdraw":
            keys = [prompt.key for prompt in rng.sample(PROMPTS, rng.randint(1, 3))]
            cluster.withdraw(keys, comes_back=rng.random() < 0.5)
        elif cluster.workers:
            name = rng.choice(list(cluster.workers))
            if kind == "lose":
                cluster.lose(name)
            elif kind == "drain":
                cluster.drain(name)
            elif kind == "slow down":
                self.slow_down(name, rng.choice(SLOWDOWNS))
            elif kind == "hang":
                cluster.workers[name].is_hung = True
            elif kind == "forget":
                cluster.workers[name].engine.forget_everything()
                cluster.checks_rows = False
            elif kind == "rejoin":
                self.join(name)

    def slow_down(self, name: str, factor: float) -> None:
        """Let a worker's answers take so many times as long as they should, as it says itself."""
        self.cluster.workers[name].slowdown = factor


def failure_of(seed: int) -> AssertionError | None:
    """Run one schedule; return what went wrong."""
    try:
        Schedule(seed).run()
    except Exception as error:  # noqa: BLE001 (whatever it is, the seed is named)
        failure = AssertionError(f"schedule {seed} (rerun: TTSVAR_SCHEDULE={seed}): {error!r}")
        failure.__cause__ = error
        return failure
    return None


@pytest.mark.timeout(300 + (SCHEDULES - FIRST) // BLOCKS)  # a second for each would be slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_results_do_not_depend_on_what_happens(block: int) -> None:
    single = os.environ.get("TTSVAR_SCHEDULE")
    seeds = [int(single)] if single is not None else range(FIRST + block, SCHEDULES, BLOCKS)
    found = (error for error in map(failure_of, seeds) if error is not None)
    # The others of a long run are worth knowing; of a broken coordinator all fail.
    failures = list(itertools.islice(found, MOST_FAILURES))
    if failures:
        raise AssertionError("\n".join(str(error) for error in failures)) from failures[0]
