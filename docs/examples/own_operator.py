"""A selection operator of one's own: survivors by tournament, each the best of a few drawn at random.

python docs/examples/own_operator.py

In a job: `strategy.selections: [{scale: 6, operator: "own_operator:Tournament", options: {rivals: 3}}, ...]`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.loop import Seen, search
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.plan import Segment
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan


@dataclass(frozen=True, kw_only=True)
class Tournament(Operator):
    name: ClassVar[str] = "tournament"  # what plan and trace call it; names its random streams
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.REWARDS})
    repeats: ClassVar[bool] = True  # a trajectory may win twice

    rivals: int = option(2, least=2)  # a field is an option

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        rewards = evidence.reward_history[:, -1]
        drawn = rng.integers(0, evidence.population, size=(count, self.rivals))
        winners = drawn[np.arange(count), rewards[drawn].argmax(axis=1)]
        wins = np.bincount(winners, minlength=evidence.population)
        return Choice(ancestor_index=winners, numbers={"wins": wins})

    def describe(self) -> str:
        return f"best of {self.rivals}"


class Walks:
    """Toys in place of images: each one's reward is a random walk over the scales."""

    def __init__(self, seed: int) -> None:
        self._rng, self._at = np.random.default_rng(seed), np.zeros(8)

    def __call__(self, segment: Segment, ancestor_index: np.ndarray, round_index: int) -> Seen:
        shape = (segment.population, segment.last_scale - segment.first_scale + 1)
        self._at = self._at[ancestor_index] + self._rng.normal(size=shape).sum(axis=1)
        return Seen(scores=self._at[:, None, None])  # [population, scored scales, members of the reward]


def mean_reward(rivals: int, prompts: int = 200) -> float:
    """Search toys of ten scales; return the mean reward of the best."""
    plan = compile_plan(
        scale_schedule=((1, 1),) * 10,
        batch_schedule=(8, 8, 8, 8, 4, 4, 4, 2, 2, 2),
        selections=[SelectionSetting(scale=s, operator=Tournament(rivals=rivals)) for s in (4, 7)],
    )
    found = []
    for prompt in range(prompts):
        best = search(plan, Walks(prompt), run_seed=0, prompt_key=f"p{prompt}")
        ((_, slot), *_) = best.ranking
        found.append(best.rounds[0].past.reward_history[slot, -1])
    return float(np.mean(found))


if __name__ == "__main__":
    for rivals in (2, 4, 8):
        print(f"{rivals} rivals  {mean_reward(rivals):+.3f}")
