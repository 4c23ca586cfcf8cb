"""What the published TTS-VAR loop does to one prompt, stated again over our own networks, part by part.

    python -m benchmarks.gpu_infinity --baseline --output FILE.json     # beside the engine, in one run

It draws the same bits as the engine from the same uniforms (tests/unit/test_published_loop.py), by doing what
the published loop does and the engine does not:

* the feature map of every live trajectory is decoded at full size after every scale, and once more at the
  end, whether anybody looks or not; all of them in one call;
* each block projects the text to keys and values anew at every scale;
* the cache is rewritten at every scale, its keys through float32; at each selection it is cloned before and
  after survivors are picked, and the garbage collector and the device's allocator are cleared;
* rewards and features see one PIL image at a time.

What it does not state again: the decomposition of patches is our extractor's (the published one is slower),
and no process group is asked for anything.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ttsvar_ray.features.registry import FeatureExtractor
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.state import KVCache, LayerCache, ScaleState
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.search.loop import Seen, search
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.types import Int64Array, Prompt, UInt8Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The final population of a prompt.

    Attributes:
        bits: uint8 [population, tokens, bits] of each scale.
        images: uint8 [population, height, width, 3].
        ranking: slots, best reward first.
        seconds: by part.
        decodes: images that were decoded.
    """

    bits: tuple[np.ndarray, ...]
    images: UInt8Array
    ranking: tuple[int, ...]
    seconds: dict[str, float]
    decodes: int


@dataclass(slots=True, kw_only=True)
class PublishedLoop:
    """Runs prompts one after the other; a plan of several rounds is not the published one."""

    model: InfinityModel
    reward: Reward
    extractor: FeatureExtractor
    plan: Plan
    run_seed: int
    decodes_every_scale: bool = True
    """False: what is looked at alone; of one image that is once, at the end, as Infinity's own loop does."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    decodes: int = 0

    @torch.inference_mode()
    def run(self, prompt: Prompt) -> Drawn:
        """Search images for a prompt."""
        self.seconds, self.decodes = defaultdict(float), 0
        with self._part("text"):
            text = self.model.encode_text([prompt.text])
        state: ScaleState | None = None
        images = np.empty(0, np.uint8)

        def run_segment(segment: Segment, ancestor_index: Int64Array, round_index: int = 0) -> Seen:
            nonlocal state, images
            assert round_index == 0, "the published loop has one round"
            if state is None:
                state = self.model.start(text, [0] * segment.population)
            else:
                state = self._survivors(state, ancestor_index)
            scores, features = [], None
            for scale in range(segment.first_scale, segment.last_scale + 1):
                state = self._advance(state, prompt, scale)
                embeds = scale == segment.last_scale and Signal.FEATURES in segment.reads
                if self.decodes_every_scale or embeds or scale in segment.scored_scales:
                    images = self._decode(state)
                if scale in segment.scored_scales:
                    with self._part("reward"):
                        scores.append([self.reward.score(image[None], [prompt.text])[0] for image in images])
                if embeds:
                    with self._part("features"):
                        features = np.concatenate([self.extractor.extract(image[None]) for image in images])
            shape = (segment.population, len(segment.scored_scales), 1)
            rewards = np.array(scores, dtype=np.float32).T.reshape(shape)
            return Seen(scores=rewards, features=features)

        found = search(self.plan, run_segment, run_seed=self.run_seed, prompt_key=prompt.key)
        assert state is not None
        if self.decodes_every_scale:
            images = self._decode(state)
        return Drawn(
            bits=self.model.bits(state),
            images=images,
            ranking=tuple(slot for _, slot in found.ranking),
            seconds=dict(self.seconds),
            decodes=self.decodes,
        )

    def _advance(self, state: ScaleState, prompt: Prompt, scale: int) -> ScaleState:
        with self._part("text again"):
            transformer = self.model.transformer
            context = transformer.text_proj_for_ca(transformer.text_norm(self._text_features(prompt)))
            for block in transformer.blocks:
                block.ca.text_keys_values(context)
        with self._part("cache"):
            state = replace(state, cache=_rewritten(state.cache))
        height, width = self.model.scale_schedule[scale]
        count = height * width * self.model.bits_per_token
        uniforms = np.stack(
            [bit_uniforms(self.run_seed, prompt.key, scale, slot, count) for slot in range(state.num_rows)]
        )
        with self._part("transformer"):
            return self.model.advance(state, uniforms)

    def _text_features(self, prompt: Prompt) -> Any:
        """Return features of both streams at the length of the text: only their size matters here."""
        config = self.model.transformer.config
        tokens = min(len(prompt.text.split()) + 1, config.text_max_length)
        return self.model.transformer.cfg_uncond[None, :tokens].expand(self.model.num_streams, -1, -1)

    def _survivors(self, state: ScaleState, ancestor_index: Int64Array) -> ScaleState:
        with self._part("cache"):
            state = replace(state, cache=_rewritten(state.cache))
            state = self.model.gather(state, ancestor_index.tolist())
            state = replace(state, cache=_rewritten(state.cache))
        with self._part("garbage collection"):
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return state

    def _decode(self, state: ScaleState) -> UInt8Array:
        with self._part("decoder"):
            self.decodes += state.num_rows
            return self.model.decode(state, size="full")

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        _wait()
        start = time.perf_counter()
        yield
        _wait()
        self.seconds[name] += time.perf_counter() - start


def _rewritten(cache: KVCache) -> KVCache:
    """Return a cache of the same values in memory of its own, its keys copied through float32."""
    return KVCache.of_layers(
        [
            LayerCache(layer.keys.float().clone().to(layer.keys.dtype), layer.values.clone())
            for layer in cache.layers
        ]
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
