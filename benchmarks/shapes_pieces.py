"""Searches and pools of the built-in model on its prompt sets, in pieces that are files.

A piece is one method (or one pool) on one share of a prompt set. It is written whole or not at all, so that a
command that runs pieces goes on after any stop, and adds methods without running the others again.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from recipes.shapes.prompt_set import HARD_SET, prompt_set
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.rewards.map_reward import own_map_reward
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.plan import Look
from ttsvar_ray.search.replay import Trajectories
from ttsvar_ray.shapes.checker import check
from ttsvar_ray.shapes.world import KINDS, Caption, Kind
from ttsvar_ray.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of a table.

    Attributes:
        name: of the row.
        strategy, sampling: sections of its job; no `sampling` is the model's own.
        is_side: asked of the first share of the prompts alone, so that the whole table ends in its time.
    """

    name: str
    strategy: Mapping[str, Any]
    sampling: Mapping[str, Any] | None = None
    is_side: bool = False


def job(method: Method, model: str, seed: int) -> JobConfig:
    """Return the job of one method and repetition; all finalists are kept, ranked as the plan chooses."""
    return JobConfig.model_validate(
        {
            "model": {"name": model, "device": "cpu"},
            "strategy": dict(method.strategy),
            "sampling": dict(method.sampling or {}),
            "engine": {"micro_batch_rows": 48, "threads": 1},
            "output": {"keep": "all"},
            "seed": seed,
        }
    )


SETS: dict[str, tuple[Kind, ...]] = {
    "genevals-kinds": KINDS,
    "color-positions": (Kind.COLOR_POSITION,),
    "hard": HARD_SET,
}
"""Kinds of the captions of each prompt set."""
HARD_MODEL = "recipes/shapes/hard_weights"
"""Draws the set `hard` unless another model is named; the others are drawn by the shipped one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which prompts a piece has: those of a set whose row is `index` modulo `of`.

    Attributes:
        prompts_of: "tuning" or "reporting".
        per_kind: prompts of each kind in the whole set.
        kinds: of its captions.
    """

    prompts_of: str
    per_kind: int
    index: int
    of: int
    kinds: tuple[Kind, ...] = KINDS

    def prompts(self) -> tuple[tuple[Prompt, Caption], ...]:
        """Return the prompts and their captions; repeated texts are told apart by their ordinals."""
        seen: dict[str, int] = {}
        chosen = []
        for row, caption in enumerate(prompt_set(self.prompts_of, self.per_kind, self.kinds)):
            ordinal = seen.get(caption.text, 0)
            seen[caption.text] = ordinal + 1
            if row % self.of == self.index:
                prompt = Prompt(row=row, prompt_id=caption.text, ordinal=ordinal, text=caption.text)
                chosen.append((prompt, caption))
        return tuple(chosen)


@dataclass(slots=True)
class _Clock:
    """CPU seconds of this process spent on searching, without judging."""

    seconds: float = 0.0


def _outcomes(
    resolved: ResolvedJob, share: Share, seed: int, clock: _Clock
) -> Iterator[tuple[PromptResult, Caption, list[bool]]]:
    """Yield each prompt's outcome with the exact checker's verdict on every image.

    Raises:
        RuntimeError: a prompt failed.
    """
    prompts = share.prompts()
    captions = {prompt.row: caption for prompt, caption in prompts}
    settings = CoordinatorSettings(spread=1, keep="all", live_rows=200)
    engine = build_engine(resolved)
    started = time.process_time()
    for outcome in run_local(
        [prompt for prompt, _ in prompts],
        plan=resolved.plan,
        engines=[engine],
        run_seed=seed,
        settings=settings,
    ):
        clock.seconds += time.process_time() - started
        if isinstance(outcome, PromptFailure):
            raise RuntimeError(f"{outcome.prompt.text}: {outcome.errors[-1]}")
        verdicts = []
        for image in outcome.images:
            pixels = np.asarray(Image.open(io.BytesIO(image.image.payload)).convert("RGB"))
            verdicts.append(bool(check(pixels, outcome.prompt.text).correct))
        yield outcome, captions[outcome.prompt.row], verdicts
        started = time.process_time()


def run_piece(method: Method, model: str, seed: int, share: Share, path: Path) -> None:
    """Run a method on a share of the prompts and write rewards and verdicts, unless they are there."""
    if path.exists():
        return
    resolved = resolve(job(method, model, seed))
    results: dict[int, dict[str, Any]] = {}
    clock = _Clock()
    for outcome, caption, verdicts in _outcomes(resolved, share, seed, clock):
        results[outcome.prompt.row] = {
            "rewards": [image.reward for image in outcome.images],
            "correct": verdicts,
            "slots": [image.lineage[-1] for image in outcome.images],
            "kind": caption.kind.value,
            "trajectories": list(outcome.trajectories),
        }
    for result in results.values():
        result["cpu_seconds"] = clock.seconds / len(results)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results))
    partial.replace(path)


def load_pieces(folder: Path, method: Method, repetition: int, shares: Sequence[Share]) -> dict[int, Any]:
    """Return the outcomes of one method and repetition by prompt row, of those shares that are finished."""
    merged: dict[int, Any] = {}
    for share in shares:
        path = piece_path(folder, method, repetition, share)
        if path.exists():
            merged |= {int(row): value for row, value in json.loads(path.read_text()).items()}
    return dict(sorted(merged.items()))


def piece_path(folder: Path, method: Method, repetition: int, share: Share) -> Path:
    """Return the file of one piece."""
    slug = "".join(c if c.isalnum() else "-" for c in method.name)
    return folder / f"{slug}-rep{repetition}-{share.index}of{share.of}.json"


# A pool: complete trajectories, looked at on their way.


class _Look(Operator):
    """Keeps everybody, and writes down what it sees."""

    name: ClassVar[str] = "look"
    repeats: ClassVar[bool] = True

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        assert count == evidence.population
        numbers: dict[str, np.ndarray] = {}
        if evidence.features is not None:
            numbers |= {f"feature {place:04d}": column for place, column in enumerate(evidence.features.T)}
        if evidence.log_likelihood is not None:
            numbers["log_likelihood"] = evidence.log_likelihood
        return Choice(ancestor_index=np.arange(count), numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class LookAtAll(_Look):
    """Looks at features, rewards and likelihoods."""

    reads: ClassVar[frozenset[Signal]] = frozenset(Signal)


@dataclass(frozen=True, kw_only=True)
class LookAtFeatures(_Look):
    """Looks at features and likelihoods, where no reward can judge yet."""

    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.FEATURES, Signal.LIKELIHOOD})


@dataclass(frozen=True, kw_only=True)
class LookAtRewards(_Look):
    """Looks at rewards and likelihoods."""

    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.REWARDS, Signal.LIKELIHOOD})


POOL_SIZE = 8
LOOKS = {
    2: LookAtFeatures,
    4: LookAtAll,
    5: LookAtAll,
    6: LookAtRewards,
    7: LookAtRewards,
    8: LookAtRewards,
    9: LookAtRewards,
}
POOL_SCALES = (4, 5, 6, 7, 8, 9, 12)
SCORED_POOL = Method(
    name="scored pool",
    strategy={
        "name": "tts-var",
        "batch_schedule": [POOL_SIZE] * 13,
        "selections": [
            {"scale": scale, "operator": f"{__name__}:{look.__name__}"} for scale, look in LOOKS.items()
        ],
    },
)


LOOKS_AHEAD = ((2, 8), (4, 6), (4, 8), (5, 8))
"""(scale, scale that is run on to): looks at the pool's trajectories besides."""
MAP_LOOKS = (4, 5, 6)
"""Scales whose rewards are read off the feature map besides."""


def run_looks(model: str, seed: int, share: Share, path: Path) -> None:
    """Draw the first scales of a pool's share again, to the bit, and judge them otherwise than by a decode.

    Raises:
        RuntimeError: a reward by a decode that is not the pool's: these are other trajectories.
    """
    if path.exists():
        return
    pool = pool_path(path.parent, share)
    engine = build_engine(resolve(job(Method(name="", strategy={"name": "raw"}), model, seed)))
    drawn, reward = engine.model, build_reward("shapes", path=describe_model(model).reward_path)
    assert isinstance(drawn, CachedModel)
    patches = own_map_reward(reward, describe_model(model).reward_path)
    with np.load(pool) as file:
        keys, known = file["key"].tolist(), file["rewards"][:, :, POOL_SCALES.index(4)]
    found: dict[str, list[np.ndarray]] = {}
    for key, expected in zip(keys, known, strict=True):
        prompt = next(one for one, _ in share.prompts() if one.key == key)
        texts = [prompt.text] * POOL_SIZE
        state = drawn.start(drawn.encode_text([prompt.text]), [0] * POOL_SIZE)
        for scale in range(1 + max(MAP_LOOKS)):
            height, width = drawn.scale_schedule[scale]
            count = height * width * drawn.bits_per_token
            state = drawn.advance(
                state, np.stack([bit_uniforms(seed, key, scale, slot, count) for slot in range(POOL_SIZE)])
            )
            if scale == 4 and not np.array_equal(reward.score(drawn.decode(state), texts), expected):
                raise RuntimeError(f"{key}: these are not the trajectories of {pool}")
            for look in (one for one in LOOKS_AHEAD if one[0] == scale):
                images = drawn.decode(drawn.look_ahead(state, look[1]))
                found.setdefault(f"ahead {look[0]} {look[1]}", []).append(reward.score(images, texts))
            if scale in MAP_LOOKS:
                scores = patches.score_maps(drawn.feature_map(state), texts)
                found.setdefault(f"map {scale}", []).append(scores)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as out:
        np.savez_compressed(out, **{name: np.array(rows, np.float64) for name, rows in found.items()})
    partial.replace(path)


def _looked(path: Path, at: int) -> dict[Look, np.ndarray]:
    """Return the other looks at one prompt of a pool's share; none where they were not taken."""
    if not path.exists():
        return {}
    with np.load(path) as file:
        named = [(name.split(), file[name][at]) for name in file.files]
    return {
        Look(scale_index=int(words[1]), ahead_to=int(words[2]) if len(words) > 2 else None): rewards
        for words, rewards in named
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolPrompt:
    """One prompt of a pool.

    Attributes:
        row, kind, key: of the prompt.
        trajectories: in slot order.
        correct: bool [trajectories], the exact checker's verdict on the final images.
    """

    row: int
    kind: str
    key: str
    trajectories: Trajectories
    correct: np.ndarray


def run_pool(model: str, seed: int, share: Share, path: Path) -> None:
    """Draw complete trajectories for a share of the prompts and write what was seen, unless it is there."""
    if path.exists():
        return
    resolved = resolve(job(SCORED_POOL, model, seed))
    rows: dict[str, list[Any]] = {}
    for outcome, caption, verdicts in _outcomes(resolved, share, seed, _Clock()):
        order = np.argsort([image.lineage[-1] for image in outcome.images])
        seen: dict[str, Any] = {
            "row": outcome.prompt.row,
            "key": outcome.prompt.key,
            "kind": caption.kind.value,
            "rewards": np.array([outcome.images[at].reward_history for at in order], dtype=np.float64),
            "correct": np.array(verdicts)[order],
        }
        for record in outcome.trace:
            scale, numbers = record.scale_index, record.numbers
            columns = [numbers[name] for name in sorted(numbers) if name.startswith("feature ")]
            if columns:
                seen[f"features {scale}"] = np.array(columns, dtype=np.float32).T
            seen[f"log_likelihood {scale}"] = np.array(numbers["log_likelihood"])
        for name, value in seen.items():
            rows.setdefault(name, []).append(value)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **{name: np.array(values) for name, values in rows.items()})
    partial.replace(path)


def load_pool(folder: Path, shares: Sequence[Share]) -> list[PoolPrompt]:
    """Return the prompts of those shares of a pool that are finished, by row."""
    prompts = []
    for share in shares:
        path = pool_path(folder, share)
        if not path.exists():
            continue
        with np.load(path) as file:
            data = {name: file[name] for name in file.files}
        for at, row in enumerate(data["row"].tolist() if "row" in data else []):
            prompts.append(
                PoolPrompt(
                    row=row,
                    kind=str(data["kind"][at]),
                    key=str(data["key"][at]),
                    correct=data["correct"][at].astype(np.float64),
                    trajectories=Trajectories(
                        scales=POOL_SCALES,
                        rewards=data["rewards"][at],
                        features=_by_scale(data, "features", at),
                        log_likelihood=_by_scale(data, "log_likelihood", at),
                        looked=_looked(looks_path(folder, share), at),
                    ),
                )
            )
    return sorted(prompts, key=lambda prompt: prompt.row)


def _by_scale(data: Mapping[str, np.ndarray], what: str, at: int) -> dict[int, np.ndarray]:
    return {
        int(name.rpartition(" ")[2]): values[at]
        for name, values in data.items()
        if name.startswith(f"{what} ")
    }


def looks_path(folder: Path, share: Share) -> Path:
    """Return the file of the other looks at one share of a pool."""
    return folder / f"looks-{share.prompts_of}-{share.per_kind}-{share.index}of{share.of}.npz"


def pool_path(folder: Path, share: Share) -> Path:
    """Return the file of one share of a pool."""
    return folder / f"scored-pool-{share.prompts_of}-{share.per_kind}-{share.index}of{share.of}.npz"
