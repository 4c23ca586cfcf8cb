"""The VAR transformer: next-scale prediction of codebook entries, conditioned on a class.

Module and parameter names are those of the published checkpoints, so these load by name.
Source: VAR (arXiv 2404.02905) section 3.2 and its released code.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), B trajectories, R = S * B rows,
n tokens of a scale, C width, V vocabulary. The residual stream is float32 in any dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ttsvar_ray.kernels.operations import gated_sum, modulated_norm
from ttsvar_ray.models.layers import NORM_EPS, AdaptiveNorm, Extend, FeedForward, SelfAttention, extending
from ttsvar_ray.models.recorded_steps import RecordedSteps, is_small, recorded_capacity
from ttsvar_ray.models.row_stability import StableLinear, autocast
from ttsvar_ray.models.state import FreshTokens, KVCache
from ttsvar_ray.models.var.config import VarConfig
from ttsvar_ray.types import ScaleSchedule


class _Block(nn.Module):
    """Self-attention and feed-forward, both modulated by the class."""

    fused = False

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.attn = SelfAttention(width, config.num_heads)
        self.ffn = FeedForward(width, config.ffn_dim)
        if config.shared_modulation:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), StableLinear(width, 6 * width))

    def modulation(self, condition: Tensor, shared: Tensor | None) -> tuple[Tensor, ...]:
        """Return gamma1, gamma2, scale1, scale2, shift1, shift2, each float32 [R, 1, C].

        Args:
            condition: [R, C], the class embedding.
            shared: [R, 1, 6, C], what the shared layer made of it; None where each block has its own.
        """
        if shared is not None:
            return (self.ada_gss.float() + shared).unbind(dim=2)
        own = self.ada_lin(condition).float()
        return own.view(condition.shape[0], 1, 6, -1).unbind(dim=2)

    def forward(self, x: Tensor, extend: Extend, modulation: tuple[Tensor, ...], *, streams: int) -> Tensor:
        """Run the tokens of one scale, x [R, n, C], against the cache of the scales before."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        attended, _ = self.attn(self._modulated(x, scale1, shift1), extend, streams=streams)
        x = gated_sum(x, attended, gamma1, fused=self.fused)
        return gated_sum(x, self.ffn(self._modulated(x, scale2, shift2)), gamma2, fused=self.fused)

    def _modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        dtype = self.ffn.fc1.weight.dtype
        return modulated_norm(x, scale, shift, eps=NORM_EPS, dtype=dtype, fused=self.fused)


class VarTransformer(nn.Module):
    """Predicts the tokens of each scale from the feature map that the scales before add up to.

    Args:
        scale_schedule: (h, w) tokens of each scale; positions are learned, so it belongs to the weights.
    """

    def __init__(self, config: VarConfig, scale_schedule: ScaleSchedule) -> None:
        super().__init__()
        if scale_schedule[0] != (1, 1):
            raise ValueError(f"scale_schedule[0]: expected (1, 1), the class token, got {scale_schedule[0]}")
        width = config.embed_dim
        self.config = config
        self.scale_schedule = scale_schedule
        counts = [height * width_ for height, width_ in scale_schedule]
        self.starts = tuple(sum(counts[:k]) for k in range(len(counts) + 1))
        self.word_embed = StableLinear(config.codebook_dim, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, self.starts[-1], width))
        self.lvl_embed = nn.Embedding(len(scale_schedule), width)
        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), StableLinear(width, 6 * width))
            if config.shared_modulation
            else nn.Identity()
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.head_nm = AdaptiveNorm(width)
        self.head = StableLinear(width, config.vocabulary)

    @property
    def block_dtype(self) -> torch.dtype:
        """The dtype of the blocks, and so of the KV cache."""
        return next(self.blocks.parameters()).dtype

    @property
    def no_class(self) -> int:
        """Label of the unconditional stream."""
        return self.config.num_classes

    def condition(self, labels: Tensor, *, streams: range) -> Tensor:
        """Return class embeddings float32 [R, C] of labels int64 [B]; conditional rows come first."""
        both = (labels, torch.full_like(labels, self.no_class))
        return self.class_emb(torch.cat([both[stream] for stream in streams])).float()

    def scale_step(
        self,
        features: Tensor | None,
        scale_index: int,
        cache: KVCache,
        condition: Tensor,
        *,
        streams: int,
        capacity: int = 0,
        recorded: RecordedSteps | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Run one scale of B trajectories.

        Args:
            features: float32 [B, n, codebook_dim], the summed feature map at this scale's size; None at
                scale 0.
            scale_index: the scale to run; the cache holds all scales before it.
            cache: keys and values so far (`KVCache()` at scale 0).
            condition: [R, C] of `condition`.
            streams: S.
            capacity: tokens that the cache is given room for, where it has too little.
            recorded: plays small passes, once it knows them.

        Returns:
            Raw logits float32 [S, B, n, V] and the extended cache. The last scale's cache is returned
            unextended: nothing reads it.
        """
        inputs = (condition,) if features is None else (condition, features)
        tokens = self.starts[scale_index + 1] - self.starts[scale_index]
        fresh = FreshTokens(
            tokens=tokens,
            layers=self.config.depth,
            streams=streams,
            rows=condition.shape[0] // streams,
            heads=self.config.num_heads,
            width=self.config.head_dim,
            dtype=self.block_dtype,
            device=condition.device,
        )
        room = None if scale_index == len(self.scale_schedule) - 1 else capacity

        def run(inputs: tuple[Tensor, ...], extend: Callable[[int], Extend]) -> Tensor:
            return self._pass(*inputs, scale_index=scale_index, extend=extend, streams=streams)

        rows = condition.shape[0]
        if recorded is not None and is_small(rows, tokens):
            counts = [stop - start for start, stop in itertools.pairwise(self.starts)]
            room = recorded_capacity(counts, scale_index, rows=rows, capacity=room)
            raw, kept = recorded.run((scale_index, streams), run, inputs, cache, fresh, capacity=room)
        else:
            kept, extend = extending(cache, fresh, capacity=room)
            raw = run(inputs, extend)
        return raw.unflatten(0, (streams, -1)), kept

    def _pass(
        self,
        condition: Tensor,
        features: Tensor | None = None,
        *,
        scale_index: int,
        extend: Callable[[int], Extend],
        streams: int,
    ) -> Tensor:
        """Return the raw logits [R, n, V] of one scale; see `scale_step`."""
        places = slice(self.starts[scale_index], self.starts[scale_index + 1])
        position = self.lvl_embed.weight[scale_index].float() + self.pos_1LC[:, places].float()
        if features is None:
            x = condition[:, None] + self.pos_start.float() + position
        else:
            x = (self.word_embed(features).float() + position).repeat(streams, 1, 1)
        shared = None
        if self.config.shared_modulation:
            shared = self.shared_ada_lin(condition).float().view(condition.shape[0], 1, 6, -1)
        for index, block in enumerate(self.blocks):
            modulation = block.modulation(condition, shared)  # type: ignore[operator]
            x = block(x, extend(index), modulation, streams=streams)
        with autocast(x.device, enabled=False):
            return self.head(self.head_nm(x, self.head_nm.modulation(condition))).float()
