"""The Infinity transformer: next-scale prediction of bits, conditioned on text.

`scale_step` runs one scale of many trajectories against an owned KV cache. Module and parameter names are
those of the published checkpoints, so these load by name.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), B trajectories, R = S * B rows, n
tokens of a scale, C width, P texts, T padded text length. The residual stream is float32 in any dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ttsvar_ray.kernels.operations import gated_sum, modulated_norm, residual_sum, weighted_norm
from ttsvar_ray.models.infinity.attention import CrossAttention, TextPoolAttention, rope_table
from ttsvar_ray.models.infinity.batch_texts import BatchTexts, PackedTexts, TextKeys
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.infinity.text import Conditioning
from ttsvar_ray.models.layers import NORM_EPS, AdaptiveNorm, Extend, FeedForward, SelfAttention, extending
from ttsvar_ray.models.recorded_steps import RecordedSteps, is_small, recorded_capacity
from ttsvar_ray.models.row_stability import StableLinear, autocast
from ttsvar_ray.models.state import FreshTokens, KVCache, LayerCache
from ttsvar_ray.types import ScaleSchedule

Observe = Callable[[str, Tensor], None]


class _TextNorm(nn.Module):
    """Root-mean-square norm of the text features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, text: Tensor) -> Tensor:
        text = text.float()
        return text * torch.rsqrt(text.square().mean(dim=-1, keepdim=True) + NORM_EPS) * self.weight


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the outer two modulated by the text."""

    fused = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.sa = SelfAttention(config.embed_dim, config.num_heads)
        self.ca = CrossAttention(config)
        self.ffn = FeedForward(config.embed_dim, config.ffn_dim)
        self.ca_norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.embed_dim))

    def modulation(self, shared: Tensor) -> tuple[Tensor, ...]:
        """Return gamma1, gamma2, scale1, scale2, shift1, shift2, each [R, 1, C], from shared [R, 6, C]."""
        return (self.ada_gss.float() + shared[:, None]).unbind(dim=2)

    def _modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        dtype = self.ffn.fc1.weight.dtype
        return modulated_norm(x, scale, shift, eps=NORM_EPS, dtype=dtype, fused=self.fused)

    def mix_text_and_feed(
        self, x: Tensor, texts: Sequence[TextKeys], modulation: tuple[Tensor, ...]
    ) -> Tensor:
        """Apply the two parts after self-attention to x [R, n, C]."""
        _, gamma2, _, scale2, _, shift2 = modulation
        norm, dtype = self.ca_norm, self.ffn.fc1.weight.dtype
        normed = weighted_norm(x, norm.weight, norm.bias, eps=NORM_EPS, dtype=dtype, fused=self.fused)
        x = residual_sum(x, self.ca(normed, texts), fused=self.fused)
        return gated_sum(x, self.ffn(self._modulated(x, scale2, shift2)), gamma2, fused=self.fused)

    def step(
        self,
        x: Tensor,
        extend: Extend,
        texts: Sequence[TextKeys],
        shared: Tensor,
        rope: Tensor,
        *,
        streams: int,
    ) -> tuple[Tensor, LayerCache]:
        """Run the tokens of one scale [R, n, C] against the cache of the scales before."""
        modulation = self.modulation(shared)
        gamma1, _, scale1, _, shift1, _ = modulation
        attended, full = self.sa(self._modulated(x, scale1, shift1), extend, rope, streams=streams)
        x = gated_sum(x, attended, gamma1, fused=self.fused)
        return self.mix_text_and_feed(x, texts, modulation), full


class _BlockChunk(nn.Module):
    """Names a run of blocks as published checkpoints do: `block_chunks.{i}.module.{j}`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.module = nn.ModuleList(Block(config) for _ in range(config.blocks_per_chunk))


class _TextPool(nn.Module):
    """Holds the pooling attention under its published name."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ca = TextPoolAttention(config)


class InfinityTransformer(nn.Module):
    """Predicts the bits of each scale from the feature map that the scales before add up to.

    Args:
        scale_schedule: (h, w) tokens of each scale; sizes may repeat. At most `config.max_scales` long.
    """

    def __init__(self, config: TransformerConfig, scale_schedule: ScaleSchedule) -> None:
        super().__init__()
        if scale_schedule[0] != (1, 1):
            raise ValueError(
                f"scale_schedule[0]: expected (1, 1), one token from the text, got {scale_schedule[0]}"
            )
        if len(scale_schedule) > config.max_scales:
            raise ValueError(
                f"scale_schedule: expected at most {config.max_scales} scales, got {len(scale_schedule)}; "
                "shorten it or raise transformer.max_scales"
            )
        width = config.embed_dim
        self.config = config
        self.scale_schedule = scale_schedule
        self.token_counts = tuple(h * w for h, w in scale_schedule)
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_max_length, config.text_channels))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = _TextNorm(config.text_channels)
        self.text_proj_for_sos = _TextPool(config)
        self.text_proj_for_ca = nn.Sequential(
            StableLinear(config.text_channels, width), nn.GELU(approximate="tanh"), StableLinear(width, width)
        )
        self.lvl_embed = nn.Embedding(config.max_scales, width)
        self.word_embed = StableLinear(config.bits_per_token, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), StableLinear(width, 6 * width))
        self.head_nm = AdaptiveNorm(width)
        self.head = StableLinear(width, 2 * config.bits_per_token)
        self.block_chunks = nn.ModuleList(_BlockChunk(config) for _ in range(config.block_chunks))
        self._rope: dict[torch.device, tuple[Tensor, ...]] = {}

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order, across chunks."""
        return [block for chunk in self.block_chunks for block in chunk.module]  # type: ignore[union-attr, misc]

    @property
    def block_dtype(self) -> torch.dtype:
        """The dtype of the blocks, and so of the KV cache."""
        return self.blocks[0].sa.proj.weight.dtype

    def set_block_dtype(self, dtype: torch.dtype) -> None:
        """Hold the blocks in `dtype`; text side, modulation, embedding and head stay float32."""
        self.block_chunks.to(dtype)

    def rope(self, scale_index: int) -> Tensor:
        """Return the rotations of one scale, complex64 [n, head_dim / 2], made once per device."""
        device = self.pos_start.device
        if device not in self._rope:
            # A table made in inference mode could not take part in a later training step.
            with torch.inference_mode(False):
                self._rope[device] = tuple(
                    rope_table(size, self.config.rope_grid, self.config.head_dim).to(device)
                    for size in self.scale_schedule
                )
        return self._rope[device][scale_index]

    def unconditional_text(self, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the learned "no text" features [P, T, text_channels] of the given lengths, and `lens`."""
        return self.cfg_uncond[None].expand(lens.shape[0], -1, -1), lens

    def condition(self, text: Tensor, lens: Tensor, *, guidance: bool) -> Conditioning:
        """Compute everything the image side needs to know of P texts.

        Args:
            text: float [P, T, text_channels], T at most text_max_length; what lies beyond `lens` is ignored.
            lens: int64 [P], real tokens of each text, at least 1.
            guidance: add the unconditional stream, of the same lengths.
        """
        length, longest = text.shape[1], self.config.text_max_length
        if length > longest or text.shape[2:] != (self.config.text_channels,):
            raise ValueError(
                f"text: expected [texts, at most {longest}, {self.config.text_channels}], "
                f"got {tuple(text.shape)}"
            )
        mask = torch.arange(length, device=text.device)[None, :] < lens[:, None]
        streams = 2 if guidance else 1
        if guidance:
            unconditional, _ = self.unconditional_text(lens)
            text = torch.cat((text.float(), unconditional[:, :length].float()))
        stream_mask = mask.repeat(streams, 1)
        normed = self.text_norm(text)
        pooled = self.text_proj_for_sos.ca(normed, stream_mask).float()
        context = self.text_proj_for_ca(normed)
        with autocast(text.device, enabled=False):
            block_modulation = self.shared_ada_lin(pooled).unflatten(-1, (6, -1))
            head_modulation = self.head_nm.modulation(pooled)
        memories = [block.ca.text_keys_values(context) for block in self.blocks]
        return Conditioning(
            pooled=pooled.unflatten(0, (streams, -1)),
            block_modulation=block_modulation.unflatten(0, (streams, -1)),
            head_modulation=head_modulation.unflatten(0, (streams, -1)),
            text_mask=mask,
            keys=tuple(keys.unflatten(0, (streams, -1)) for keys, _ in memories),
            values=tuple(values.unflatten(0, (streams, -1)) for _, values in memories),
        )

    def first_tokens(self, pooled: Tensor) -> Tensor:
        """Return the input of scale 0, [R, 1, C], from the pooled text [R, C]."""
        return pooled[:, None, :] + self.pos_start

    def predict(self, x: Tensor, head_modulation: Tensor) -> Tensor:
        """Return logits float32 [R, n, 2 * bits_per_token] from x [R, n, C], modulation [R, 2, C]."""
        with autocast(x.device, enabled=False):
            return self.head(self.head_nm(x, head_modulation))

    def scale_step(
        self,
        features: Tensor | None,
        scale_index: int,
        cache: KVCache,
        conditioning: Conditioning | BatchTexts | PackedTexts,
        *,
        capacity: int = 0,
        observe: Observe | None = None,
        recorded: RecordedSteps | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Run one scale of B trajectories.

        Args:
            features: float32 [B, n, bits_per_token], the summed feature map at this scale's size; None at
                scale 0.
            scale_index: the scale to run; the cache holds all scales before it.
            cache: keys and values so far (`KVCache()` at scale 0).
            conditioning: of B texts in the order of the trajectories, or what these need of other texts.
            capacity: tokens that the cache is given room for, where it has too little.
            observe: called with "x0", "block{i}" [R, n, C] and "keys{i}", "values{i}" [S, B, H, L, D] of each
                block, to compare with another implementation.
            recorded: plays small passes over packed texts, once it knows them.

        Returns:
            Raw logits float32 [S, B, n, 2 * bits_per_token] (entries 2j and 2j + 1 belong to bit j being 0
            and 1), and the extended cache. The last scale's cache is returned unextended: nothing reads it.
        """
        texts = BatchTexts([conditioning]) if isinstance(conditioning, Conditioning) else conditioning
        inputs = () if features is None else (features,)
        fresh = FreshTokens(
            tokens=self.token_counts[scale_index],
            layers=self.config.depth,
            streams=texts.streams,
            rows=texts.num_rows // texts.streams,
            heads=self.config.num_heads,
            width=self.config.head_dim,
            dtype=self.block_dtype,
            device=self.pos_start.device,
        )
        room = None if scale_index == len(self.scale_schedule) - 1 else capacity

        def run(inputs: tuple[Tensor, ...], extend: Callable[[int], Extend]) -> Tensor:
            return self._pass(inputs[0] if inputs else None, scale_index, texts, extend, observe)

        rows = texts.num_rows
        if recorded is not None and isinstance(texts, PackedTexts) and is_small(rows, fresh.tokens):
            name = (scale_index, texts.address)
            room = recorded_capacity(self.token_counts, scale_index, rows=rows, capacity=room)
            raw, kept = recorded.run(name, run, inputs, cache, fresh, capacity=room)
        else:
            kept, extend = extending(cache, fresh, capacity=room)
            raw = run(inputs, extend)
        return raw.unflatten(0, (texts.streams, -1)), kept

    def _pass(
        self,
        features: Tensor | None,
        scale_index: int,
        texts: BatchTexts | PackedTexts,
        extend: Callable[[int], Extend],
        observe: Observe | None,
    ) -> Tensor:
        """Return the raw logits [R, n, 2 * bits_per_token] of one scale; see `scale_step`."""
        if features is None:
            x = self.first_tokens(texts.pooled)
        else:
            x = self.word_embed(features).float().repeat(texts.streams, 1, 1)
        x = x + self.lvl_embed.weight[scale_index].float()
        shared, rope = texts.block_modulation, self.rope(scale_index)
        if observe:
            observe("x0", x)
        for index, block in enumerate(self.blocks):
            x, layer = block.step(x, extend(index), texts.keys(index), shared, rope, streams=texts.streams)
            if observe:
                observe(f"block{index}", x)
                observe(f"keys{index}", layer.keys)
                observe(f"values{index}", layer.values)
        return self.predict(x, texts.head_modulation)
