"""The searches of the table of docs/results.md: those that run, and those that are replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.shapes_pieces import Method
from ttsvar_ray.search.plan import Rounds

BEST_OF = (8, 16)
"""Sizes of the pool of best-of-k: the scored pool, or one of its own."""


def staged(
    name: str,
    survivors: Sequence[tuple[int, int, Any]],
    *,
    final: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    is_side: bool | None = None,
) -> Method:
    """Return a search of named selections.

    Args:
        name: of its row.
        survivors: (scale, population from there on, operator); the first one is the start, with no operator;
            an operator is a name, or a name with its options.
        final: how final images are ranked.
        sampling: of the job, where it is not the model's own.
        is_side: as in `Method`; None where it is one if it samples otherwise.
    """
    schedule = [[kept for scale, kept, _ in survivors if scale <= at][-1] for at in range(13)]
    selections = [
        {"scale": scale, **({"operator": operator} if isinstance(operator, str) else operator)}
        for scale, _, operator in survivors[1:]
    ]
    strategy = {"name": "tts-var", "batch_schedule": schedule, "selections": selections}
    return Method(
        name=name,
        strategy={**strategy, **(final or {})},
        sampling=sampling,
        is_side=sampling is not None if is_side is None else is_side,
    )


def adaptive_strategy(rounds: Rounds) -> dict[str, Any]:
    """Return the settings of an adaptive search with these thresholds, to four digits."""
    return {
        "name": "adaptive",
        "max_rounds": rounds.most,
        "reject_below": {scale: round(least, 4) for scale, least in rounds.reject_below},
        "stop_at": round(float(rounds.stop_at or 0.0), 4),
    }


def _resample(**options: Any) -> dict[str, Any]:
    return {"operator": "resample", "options": options}


TWELVE = {
    "plan": "published",
    "batch_schedule": [12] * 4 + [8] * 2 + [2] * 3 + [1] * 4,
    "cluster_scales": [4],
    "resample_scales": [6, 9],
}
"""What the model's own plan was before one cut (docs/shapes_model.md)."""


def guided(first: int, last: int = 12) -> dict[str, Any]:
    """Return the settings that guide the scales from `first` to `last` alone."""
    return {"guidance": [3.5 if first <= scale <= last else 1.0 for scale in range(13)]}


def _softened(confidence: float) -> dict[str, Any]:
    """Return the settings that bound how sure bits are, up to the scale of the cut."""
    return {"confidence": [confidence] * 7 + [None] * 6}


LAST_GUIDED = 9
"""Where guidance may end: on tuning prompts nothing was lost (docs/results.md, "What separates them")."""
GUIDED_EARLY = guided(0, LAST_GUIDED)
GUIDED_NAME = f"{{}}, guided up to {LAST_GUIDED}"
ADAPTIVE_NAME = "adaptive, budget {:g}"
_CUT = [(6, 1, "top-k")]
IDEAS = (
    staged("guided from 7 on: 8, the best at 6", [(0, 8, None), *_CUT], sampling=guided(7)),
    staged("guided from 5 on: 8, the best at 6", [(0, 8, None), *_CUT], sampling=guided(5)),
    staged("guided from 7 on: 16, the best at 6", [(0, 16, None), *_CUT], sampling=guided(7)),
    staged("guided up to 6: 8, the best at 6", [(0, 8, None), *_CUT], sampling=guided(0, 6)),
    staged(
        f"guided up to {LAST_GUIDED}: 8, the best at 6",
        [(0, 8, None), *_CUT],
        sampling=GUIDED_EARLY,
        is_side=False,
    ),
    Method(
        name=GUIDED_NAME.format("best-of-8"),
        strategy={"name": "best-of-n", "n": 8},
        sampling=GUIDED_EARLY,
        is_side=True,
    ),
    staged("confidence 0.85 up to 6: 8, the best at 6", [(0, 8, None), *_CUT], sampling=_softened(0.85)),
    staged("confidence 0.8 up to 6: 8, the best at 6", [(0, 8, None), *_CUT], sampling=_softened(0.8)),
)
"""The field's ideas that a replay cannot answer, since other trajectories are drawn: each beside one cut."""

RUN = (
    staged("one cut: 8, the best at 6", [(0, 8, None), (6, 1, "top-k")]),
    Method(name=GUIDED_NAME.format("raw"), strategy={"name": "raw"}, sampling=GUIDED_EARLY),
    Method(name="TTS-VAR, 12 trajectories, N=1", strategy={"name": "tts-var", **TWELVE}),
    Method(name="TTS-VAR, published plan, N=1", strategy={"name": "tts-var", "plan": "published"}),
    # Trajectories dropped before anything is known of them are trajectories not started.
    staged(
        "published plan without clustering: 4, resample 6 and 9",
        [(0, 4, None), (6, 2, "resample"), (9, 1, "resample")],
    ),
    staged(
        "12 trajectories without clustering: 8, resample 6 and 9",
        [(0, 8, None), (6, 2, "resample"), (9, 1, "resample")],
    ),
    *(
        Method(name=f"{name}, N={n}", strategy={**strategy, "n": n}, is_side=True)
        for name, strategy, sizes in (
            ("resampling alone", {"name": "resampling", "plan": "published"}, (2, 4, 8)),
            ("TTS-VAR, published plan", {"name": "tts-var", "plan": "published"}, (2, 4)),
            ("TTS-VAR, 12 trajectories", {"name": "tts-var", **TWELVE}, (2, 4)),
        )
        for n in sizes
    ),
    *IDEAS,
)
POOL_METHOD = Method(name="pool", strategy={"name": "best-of-n", "n": BEST_OF[-1]})

REPLAYED = (
    staged("one cut: 4, the best at 6", [(0, 4, None), *_CUT]),
    staged("one cut: 8, the best at 6", [(0, 8, None), *_CUT]),
    staged("one cut: 8, the best at 5", [(0, 8, None), (5, 1, "top-k")]),
    staged("one cut: 8, the best at 7", [(0, 8, None), (7, 1, "top-k")]),
    staged(
        "beam: 8, 4 at 5, 2 at 6, 1 at 9",
        [(0, 8, None), *((s, k, "top-k") for s, k in ((5, 4), (6, 2), (9, 1)))],
    ),
    *(
        staged(f"8, {name} to 4 at 4, the best at 6", [(0, 8, None), (4, 4, operator), *_CUT])
        for name, operator in (
            ("cluster", "cluster"),
            ("best of each cluster", "cluster-best"),
            ("farthest points", "farthest-point"),
            ("DPP", "dpp"),
            ("density", "density"),
            ("density, half at random", {"operator": "density", "options": {"random_share": 0.5}}),
            ("likelihood", "likelihood"),
            ("diverse top-k", "diverse-top-k"),
        )
    ),
    staged("8, density to 4 at 2, the best at 6", [(0, 8, None), (2, 4, "density"), *_CUT]),
    staged("8, cluster to 4 at 2, the best at 6", [(0, 8, None), (2, 4, "cluster"), *_CUT]),
    staged("8, one drawn at 6, lambda 10", [(0, 8, None), (6, 1, _resample())]),
    staged(
        "8, one drawn at 6, z-scores, lambda 3",
        [(0, 8, None), (6, 1, _resample(normalise="z-score", **{"lambda": 3}))],
    ),
    staged("8, one drawn at 6, ranks, lambda 10", [(0, 8, None), (6, 1, _resample(normalise="rank"))]),
    staged("8, 2 at 6, the better at the end", [(0, 8, None), (6, 2, "top-k")]),
    staged(
        "8, 2 at 6, the better by the mean of 8, 9 and 12",
        [(0, 8, None), (6, 2, "top-k")],
        final={"final_mean_of": [8, 9, 12]},
    ),
    Method(
        name="best-of-8 by the mean of 8, 9 and 12",
        strategy={"name": "best-of-n", "n": 8, "final_mean_of": [8, 9, 12]},
    ),
    staged("no reward: 8, density to 1 at 5", [(0, 8, None), (5, 1, "density")]),
    staged("no reward: 8, likelihood to 1 at 6", [(0, 8, None), (6, 1, "likelihood")]),
)

LOOKING = (
    *(
        staged(
            f"{start}, the best at {scale} by its feature map",
            [(0, start, None), (scale, 1, "top-k")],
            final={"map_scales": [scale]},
        )
        for start, scale in ((8, 6), (8, 5), (4, 6))
    ),
    staged(
        "8, 4 at 4 by their feature maps, the best at 6",
        [(0, 8, None), (4, 4, "top-k"), *_CUT],
        final={"map_scales": [4]},
    ),
    staged(
        "8, 2 at 6 by their feature maps, the better at the end",
        [(0, 8, None), (6, 2, "top-k")],
        final={"map_scales": [6]},
    ),
    *(
        staged(
            f"8, the best at {scale} by a look ahead to {ahead}",
            [(0, 8, None), (scale, 1, "top-k")],
            final={"look_ahead": {scale: ahead}},
        )
        for scale, ahead in ((2, 8), (4, 6), (4, 8), (5, 8))
    ),
    staged(
        "8, 4 at 4 by a look ahead to 8, the best at 6",
        [(0, 8, None), (4, 4, "top-k"), *_CUT],
        final={"look_ahead": {4: 8}},
    ),
    staged("8, 4 at 4 by reward, the best at 6", [(0, 8, None), (4, 4, "top-k"), *_CUT]),
)
"""Replayed, too, where trajectories are judged otherwise than by a decode of what is there; the last is their
control."""
