"""Loops of one's own in the place of Algorithm 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.small_search import PROMPT, small_search
from ttsvar_ray import Search
from ttsvar_ray.search import loop as algorithm
from ttsvar_ray.search.operators.protocol import Choice
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.rounds import RoundEnd, StopReason


@pytest.fixture(scope="module")
def search() -> Search:
    return small_search()


def test_a_loop_of_ones_own_takes_the_place_of_algorithm_1(search: Search) -> None:
    prompts = [PROMPT]
    (same,) = search.run(prompts, loop=algorithm.search)
    assert same.best.encoded == search.run(prompts)[0].best.encoded

    def first_ones(plan: Plan, run_segment: Any, *, run_seed: int, prompt_key: str) -> algorithm.Found:
        """Select without looking: the first trajectories go on."""
        ancestors = np.arange(plan.population_before[0])
        past, pasts, choices = algorithm.Past.empty(len(ancestors)), [], []
        for segment in plan.segments:
            past = past.grown(ancestors, run_segment(segment, ancestors), plan)
            pasts.append(past)
            if segment.selection is not None:
                ancestors = np.arange(segment.selection.survivors)
                choices.append(Choice(ancestor_index=ancestors))
        return algorithm.Found.of_one(plan, ranking=[0], pasts=pasts, choices=choices)

    (other,) = search.run(prompts, loop=first_ones)
    assert other.lineage == (0, 0, 0)

    def forgetful(plan: Plan, *arguments: Any, **more: Any) -> algorithm.Found:
        (one,) = first_ones(plan, *arguments, **more).rounds
        return algorithm.Found.of_one(plan, ranking=[0], pasts=one.pasts, choices=())

    with pytest.raises(ValueError, match="expected a choice for each of the plan's 2 selections, got 0"):
        search.run(prompts, loop=forgetful)
    with pytest.raises(TypeError, match="loop: expected a Found"):
        search.run(prompts, loop=lambda *_, **__: None)  # type: ignore[arg-type,return-value]


def test_a_loop_of_ones_own_may_draw_rounds_and_name_slots_in_a_list(search: Search) -> None:
    def twice(plan: Plan, run_segment: Any, *, run_seed: int, prompt_key: str) -> algorithm.Found:
        """Draw two rounds, though the plan has one, and rank the images of both by slot."""
        rounds = []
        for index in (0, 1):
            ancestors = list(range(plan.population_before[0]))
            past, pasts, choices = algorithm.Past.empty(len(ancestors)), [], []
            for segment in plan.segments:
                past = past.grown(ancestors, run_segment(segment, ancestors, index), plan)  # type: ignore[arg-type]
                pasts.append(past)
                if segment.selection is not None:
                    ancestors = list(range(segment.selection.survivors))
                    choices.append(Choice(ancestor_index=ancestors))  # type: ignore[arg-type]
            rounds.append(
                algorithm.Round(
                    segments=plan.segments,
                    pasts=tuple(pasts),
                    choices=tuple(choices),
                    end=RoundEnd.of(index, plan.num_scales - 1, past.latest),
                )
            )
        ranking = tuple((place, 0) for place in (1, 0))
        return algorithm.Found(rounds=tuple(rounds), ranking=ranking, reason=StopReason.ROUNDS)

    (found,) = search.run([PROMPT], loop=twice)
    (once,) = search.run([PROMPT])
    assert once.cost_images is not None and found.cost_images is not None
    # The text is read once, everything else twice.
    assert 1.98 < found.cost_images / once.cost_images < 2
    assert [image.round_index for image in found.images] == [1, 0]
    assert found.tree is not None
    assert [tree.levels[0].kept for tree in found.tree.rounds] == [(0, 1), (0, 1)]
    # Trajectories of a prompt that is over, gigabytes of them on a GPU, are held by nobody.
    assert search._engine.held_prompts == 0


@pytest.mark.parametrize("ancestors", [[7, 0], [0, -1], [0], [0.0, 1.0], [[0, 1]], []])
def test_a_loop_that_goes_on_from_what_is_not_there_is_told_so(search: Search, ancestors: list[Any]) -> None:
    def wrong(plan: Plan, run_segment: Any, *, run_seed: int, prompt_key: str) -> algorithm.Found:
        run_segment(plan.segments[0], np.arange(plan.population_before[0]))
        run_segment(plan.segments[1], ancestors)
        raise AssertionError

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        search.run([PROMPT], loop=wrong)
    assert str(caught.value) == (
        "loop: run_segment(scales 6 to 8): ancestor_index: expected 2 slots of the population before, whole "
        f"numbers from 0 to 2, got {ancestors}"
    )

    def hasty(plan: Plan, run_segment: Any, *, run_seed: int, prompt_key: str) -> algorithm.Found:
        run_segment(plan.segments[1], np.arange(2))
        raise AssertionError

    with pytest.raises(ValueError, match="expected the scales before to have run right before"):
        search.run([PROMPT], loop=hasty)


@pytest.mark.parametrize("ranking", [[], [1], [-1], [0, 0]])
def test_a_loop_ranks_images_that_there_are(search: Search, ranking: list[int]) -> None:
    def wrong(plan: Plan, *arguments: Any, **more: Any) -> algorithm.Found:
        (one,) = algorithm.search(plan, *arguments, **more).rounds
        return algorithm.Found.of_one(plan, ranking=ranking, pasts=one.pasts, choices=one.choices)

    with pytest.raises(
        ValueError, match=r"loop: ranking: expected slots of final images once, 0 to 0, got \["
    ):
        search.run([PROMPT], loop=wrong)
