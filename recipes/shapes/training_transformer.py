"""The Infinity transformer in training: all scales at once under a block-causal mask, from quiet weights.

Legend: R rows, L tokens of all scales, H heads, D head width, C width, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttsvar_ray.models.infinity.batch_texts import TextKeys
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.infinity.text import Conditioning
from ttsvar_ray.models.infinity.transformer import Block, InfinityTransformer
from ttsvar_ray.models.layers import plain_norm
from ttsvar_ray.types import ScaleSchedule

MIN_GROUP_TOKENS = 64


class TrainingTransformer(InfinityTransformer):
    """An `InfinityTransformer` that is initialised for training from scratch, and runs all scales at once.

    Args:
        config, scale_schedule: as there.
    """

    def __init__(self, config: TransformerConfig, scale_schedule: ScaleSchedule) -> None:
        super().__init__(config, scale_schedule)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise for training from scratch: small truncated normals, identity modulation, quiet head."""

        def normal(tensor: Tensor, std: float) -> None:
            nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                normal(module.weight, (3 * module.in_features) ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        width = self.config.embed_dim
        for tensor in (self.lvl_embed.weight, self.pos_start, self.text_proj_for_sos.ca.mat_q):
            normal(tensor, (3 * width) ** -0.5)
        normal(self.cfg_uncond, self.config.text_channels**-0.5)
        with torch.no_grad():
            for block in self.blocks:
                for linear in (block.sa.proj, block.ca.proj, block.ffn.fc2):
                    linear.weight.mul_((3 * self.config.depth) ** -0.5)
                block.ada_gss.zero_()
                block.ada_gss[:, :, :2] = 1.0
            self.shared_ada_lin[1].weight.mul_(0.1)  # type: ignore[union-attr, operator]
            self.head_nm.ada_lin[1].weight.mul_(0.1)  # type: ignore[union-attr, operator]
            self.head.weight.mul_(0.02)

    def forward_all(
        self, scale_inputs: Sequence[Tensor], conditioning: Conditioning, num_scales: int
    ) -> Tensor:
        """Run the first `num_scales` scales of B samples at once, each with its own text (teacher forcing).

        Args:
            scale_inputs: float [B, n_s, bits_per_token] for the scales 1 .. num_scales - 1.
            conditioning: of B texts, one stream.
            num_scales: how many scales to run.

        Returns:
            Logits float32 [B, L, 2 * bits_per_token], L the tokens of these scales; equal to what
            `scale_step` returns scale by scale.
        """
        if len(scale_inputs) != num_scales - 1:
            raise ValueError(
                f"scale_inputs: expected {num_scales - 1} scales after the first, got {len(scale_inputs)}"
            )
        if conditioning.num_streams != 1:
            raise ValueError("conditioning: expected one stream (guidance=False) in teacher forcing")
        pooled = conditioning.pooled[0]
        counts = self.token_counts[:num_scales]
        levels = torch.repeat_interleave(
            self.lvl_embed.weight[:num_scales],
            torch.tensor(counts, device=pooled.device),
            dim=0,
            output_size=sum(counts),
        )
        x = self.first_tokens(pooled)
        if num_scales > 1:
            x = torch.cat((x, self.word_embed(torch.cat(list(scale_inputs), dim=1)).float()), dim=1)
        x = x + levels
        mask = conditioning.text_mask[:, None, None, :]
        rope = torch.cat([self.rope(scale) for scale in range(num_scales)])
        groups = query_groups(counts)
        for index, block in enumerate(self.blocks):
            text = TextKeys(conditioning.keys[index][0], conditioning.values[index][0], mask)
            x = _teacher_forced(block, x, groups, text, conditioning.block_modulation[0], rope)
        return self.predict(x, conditioning.head_modulation[0])

    def forward(self, text: Tensor, lens: Tensor, scale_inputs: Sequence[Tensor]) -> Tensor:
        """Condition on one text per sample and run `forward_all` over 1 + len(scale_inputs) scales."""
        return self.forward_all(
            scale_inputs, self.condition(text, lens, guidance=False), 1 + len(scale_inputs)
        )


def _teacher_forced(
    block: Block, x: Tensor, groups: Sequence[QueryGroup], text: TextKeys, shared: Tensor, rope: Tensor
) -> Tensor:
    """Run the tokens of all scales [R, L, C] through one block at once."""
    modulation = block.modulation(shared)
    gamma1, _, scale1, _, shift1, _ = modulation
    q, k, v = block.sa.qkv(plain_norm(x) * (1 + scale1) + shift1, rope)
    x = x + block.sa.output(block_causal_attention(q, k, v, groups)) * gamma1
    return block.mix_text_and_feed(x, [text], modulation)


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Queries start..end of a teacher-forced sequence; they see the keys 0..end under `bias`.

    Attributes:
        start, end: token range of the queries; keys end at `end`.
        bias: float32 [end - start, end] with -inf where a key belongs to a later scale; None when the
            group is one scale, which sees all keys.
    """

    start: int
    end: int
    bias: Tensor | None


def query_groups(token_counts: Sequence[int]) -> tuple[QueryGroup, ...]:
    """Split a block-causal attention over scales into few groups of queries.

    A fine scale is a group of its own and needs no mask; coarse scales share one, since many tiny
    matmuls cost more than a few masked scores. Half of the full score matrix is never computed.
    """
    groups: list[QueryGroup] = []
    start = 0
    pending: list[int] = []
    for index, count in enumerate(token_counts):
        pending.append(count)
        last = index == len(token_counts) - 1
        if sum(pending) < MIN_GROUP_TOKENS and not last:
            continue
        end = start + sum(pending)
        bias = None
        if len(pending) > 1:
            visible = torch.repeat_interleave(start + torch.tensor(pending).cumsum(0), torch.tensor(pending))
            hidden = torch.arange(end)[None, :] >= visible[:, None]
            bias = torch.zeros(end - start, end).masked_fill_(hidden, -math.inf)
        groups.append(QueryGroup(start, end, bias))
        start, pending = end, []
    return tuple(groups)


def block_causal_attention(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[QueryGroup]) -> Tensor:
    """Attend within and to earlier scales; q, k, v and result [R, H, L, D], softmax scale 1.

    Plain matmuls: on a CPU their bfloat16 backward is several times faster than the fused kernel's.
    """
    outputs = []
    for group in groups:
        scores = torch.matmul(q[:, :, group.start : group.end], k[:, :, : group.end].transpose(-2, -1))
        scores = scores.float() if group.bias is None else scores + group.bias.to(scores.device)
        outputs.append(torch.matmul(scores.softmax(dim=-1).to(v.dtype), v[:, :, : group.end]))
    return torch.cat(outputs, dim=2)
