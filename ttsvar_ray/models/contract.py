"""What every model family must keep, as checks that run on any model.

A family's author runs `check_model` on a small model of theirs; the package tests its own families with it.
The checks compare bytes: the guarantee that output does not depend on workers, micro-batches, kills and
resumes rests on nothing else of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttsvar_ray.models.protocol import LooksAhead, NextScaleModel, ScoringModel
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.types import Float32Array

ROWS_PER_TEXT = 3


class ContractError(AssertionError):
    """A model that does not keep the protocol."""


def check_model(model: NextScaleModel, texts: Sequence[str], *, run_seed: int = 0) -> None:
    """Generate a few images in several ways and compare them.

    Args:
        model: any model; it draws `ROWS_PER_TEXT` images for each text, several times over.
        texts: at least two that the model can draw.

    Raises:
        ContractError: the first promise of `NextScaleModel` that is not kept.
    """
    if len(set(texts)) < 2:
        raise ValueError(f"texts: expected at least two different ones, got {list(texts)}")
    asked = [*NextScaleModel.__annotations__, *(name for name in vars(NextScaleModel) if name[0] != "_")]
    missing = [name for name in asked if getattr(model, name, None) is None]
    _require(not missing, f"{type(model).__name__}: expected {', '.join(missing)}, found none")
    _Check(model, texts, run_seed).run()


@dataclass(frozen=True, slots=True)
class _Seen:
    """The bits of a state by scale, and its images."""

    bits: Sequence[np.ndarray]
    images: np.ndarray

    @classmethod
    def of(cls, model: NextScaleModel, state: Any) -> _Seen:
        return cls(model.bits(state), model.decode(state))


class _Check:
    def __init__(self, model: NextScaleModel, texts: Sequence[str], run_seed: int) -> None:
        self._model = model
        self._texts = texts
        self._run_seed = run_seed
        self._text_of = [index for index in range(len(texts)) for _ in range(ROWS_PER_TEXT)]
        self._rows = list(range(len(self._text_of)))

    def run(self) -> None:
        model = self._model
        state = self._draw(self._rows, model.num_scales)
        whole = _Seen.of(model, state)
        self._check_shapes(state, whole)
        self._check_independence(whole)
        middle = self._draw(self._rows, max(1, model.num_scales // 2))
        before = self._fingerprint(middle)
        if isinstance(model, LooksAhead):
            self._check_look_ahead(model, middle)
        later = self._finish(middle, self._rows)
        _require(
            self._fingerprint(middle) == before, "advance changed its argument; return a new state instead"
        )
        self._same(later, whole, self._rows, "going on from a state that was kept")
        self._check_gather(state, middle, whole)
        if isinstance(model, ScoringModel):
            self._check_likelihood(model, whole)
        replayed = model.replay(self._start(self._rows), model.bits(middle))
        self._same(self._finish(replayed, self._rows), whole, self._rows, "going on from replayed bits")
        self._same(model.replay(self._start(self._rows), whole.bits), whole, self._rows, "replaying all bits")

    def _check_shapes(self, state: Any, whole: _Seen) -> None:
        model, rows, images = self._model, len(self._rows), whole.images
        expected = (rows, model.image_height, model.image_width, 3)
        _require(images.dtype == np.uint8, f"decode: expected uint8, got {images.dtype}")
        _require(images.shape == expected, f"decode: expected {expected}, got {images.shape}")
        selector = model.decode(state, size="selector")
        _require(
            selector.dtype == np.uint8 and selector.ndim == 4 and len(selector) == rows,
            f"decode(size='selector'): expected uint8 [{rows}, height, width, 3], got {selector.shape}",
        )
        _require(
            model.scale_index(state) == model.num_scales,
            f"scale_index: expected {model.num_scales} after the last scale, got {model.scale_index(state)}",
        )
        bits = whole.bits
        for scale_index, (height, width) in enumerate(model.scale_schedule):
            shape = (rows, height * width, model.bits_per_token)
            _require(
                bits[scale_index].shape == shape and set(np.unique(bits[scale_index])) <= {0, 1},
                f"bits of scale {scale_index}: expected 0 and 1 of shape {shape}, got "
                f"{np.unique(bits[scale_index])[:5].tolist()} of shape {bits[scale_index].shape}",
            )

    def _check_independence(self, whole: _Seen) -> None:
        last = self._rows[-1]
        for rows in ([0], [last], [last, 0], self._rows[1:]):
            part = self._draw(rows, self._model.num_scales)
            self._same(part, whole, rows, f"rows {rows} drawn without the others")

    def _check_likelihood(self, model: ScoringModel, whole: _Seen) -> None:
        """What is drawn while it is scored is what is drawn, and no row's score depends on the others."""
        everyone = self._scored(model, self._rows)
        self._same(everyone[0], whole, self._rows, "drawing with advance_scored")
        for rows in ([0], self._rows[1:]):
            _, scores = self._scored(model, rows)
            _require(
                bool(np.isfinite(scores).all()) and np.array_equal(scores, everyone[1][:, rows]),
                f"advance_scored of rows {rows} drawn without the others: other log probabilities; a row's "
                "result must not depend on its batch",
            )

    def _check_look_ahead(self, model: LooksAhead, middle: Any) -> None:
        """What is run on to draws nothing, and no row of it depends on the others."""
        last = self._model.num_scales - 1
        ahead = _Seen.of(self._model, model.look_ahead(middle, last))
        for rows in ([0], self._rows[1:]):
            alone = model.look_ahead(self._model.gather(middle, rows), last)
            self._same(alone, ahead, rows, f"rows {rows} looked ahead from alone")

    def _scored(self, model: ScoringModel, rows: Sequence[int]) -> tuple[Any, np.ndarray]:
        """Return the rows drawn to the end, and the log probabilities of their scales, [scales, rows]."""
        state, scores = self._start(rows), []
        for scale_index in range(self._model.num_scales):
            state, logs = model.advance_scored(state, self._uniforms(rows, scale_index))
            scores.append(logs)
        return state, np.array(scores)

    def _check_gather(self, state: Any, middle: Any, whole: _Seen) -> None:
        model = self._model
        halves = [self._rows[::2], self._rows[1::2]]
        joined = model.concatenate([model.gather(middle, rows) for rows in halves])
        order = halves[0] + halves[1]
        self._same(self._finish(joined, order), whole, order, "gathered and concatenated rows")
        twice = model.gather(middle, [1, 1])
        self._same(self._finish(twice, [1, 1]), whole, [1, 1], "a row that was gathered twice")
        self._same(model.gather(state, order), whole, order, "rows that were gathered at the end")

    def _start(self, rows: Sequence[int]) -> Any:
        # One text at a time, as an engine does: no text may be padded by its neighbours.
        encoded = {text: self._model.encode_text([self._texts[text]]) for text in sorted(set(self._text_of))}
        return self._model.concatenate([self._model.start(encoded[self._text_of[row]], [0]) for row in rows])

    def _draw(self, rows: Sequence[int], scales: int) -> Any:
        state = self._start(rows)
        for _ in range(scales):
            state = self._model.advance(state, self._uniforms(rows, self._model.scale_index(state)))
        return state

    def _finish(self, state: Any, rows: Sequence[int]) -> Any:
        while self._model.scale_index(state) < self._model.num_scales:
            state = self._model.advance(state, self._uniforms(rows, self._model.scale_index(state)))
        return state

    def _uniforms(self, rows: Sequence[int], scale_index: int) -> Float32Array:
        height, width = self._model.scale_schedule[scale_index]
        count = height * width * self._model.bits_per_token
        return np.stack([bit_uniforms(self._run_seed, f"row-{row}", scale_index, 0, count) for row in rows])

    def _fingerprint(self, state: Any) -> bytes:
        bits = b"".join(scale.tobytes() for scale in self._model.bits(state))
        return bits + self._model.decode(state).tobytes()

    def _same(self, state: Any, whole: _Seen, rows: Sequence[int], where: str) -> None:
        """Require that a state is what some rows of the whole are."""
        for scale_index, (a, b) in enumerate(zip(self._model.bits(state), whole.bits, strict=True)):
            _require(np.array_equal(a, b[rows]), f"{where}: other bits at scale {scale_index}")
        _require(
            np.array_equal(self._model.decode(state), whole.images[rows]),
            f"{where}: other pixels; a row's result must not depend on its batch",
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)
