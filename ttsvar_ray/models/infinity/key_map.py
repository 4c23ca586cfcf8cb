"""Published names of weights -> the names of our modules; nothing is dropped without a reason.

Most names are kept. What the maps undo:

* buffers of training and of older versions, which hold no weights, are dropped;
* tokenizer files may name a convolution `X.weight` where the module is `X.conv.weight`, and a norm `X.weight`
  where it is `X.norm.weight`: both forms are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.weight_files import Weights

DROPPED_TRANSFORMER_LEAVES = {
    "lvl_1L": "which scale each training position belongs to; follows from the schedule",
    "attn_bias_for_masking": "mask over the scales of a training sequence; follows from the schedule",
    "Infinity_visible_kvlen": "mask of training in another form; follows from the schedule",
    "Infinity_invisible_qlen": "mask of training in another form; follows from the schedule",
}
_QUANTIZER_MASK = "powers of two that number the codes; bits are kept as bits here"
DROPPED_TOKENIZER_KEYS = {
    f"{owner}.{leaf}": reason
    for owner in ("quantizer", "quantize", "quantizer.lfq", "quantize.lfq")
    for leaf, reason in (
        ("mask", _QUANTIZER_MASK),
        ("zero", "the constant 0"),
        ("codebook", "all codes in a table; each is the sign of its bits"),
    )
}
"""The quantiser has no weights; a projection or norm of its own would be one, and is not dropped."""

_NORMS = frozenset({"norm1", "norm2", "norm_out"})
_CONVOLUTIONS = frozenset({"conv_in", "conv_out", "conv1", "conv2", "nin_shortcut"})
_RESIZERS = frozenset({"downsample", "upsample"})


@dataclass(frozen=True, slots=True)
class KeyMap:
    """What becomes of each published name.

    Attributes:
        kept: published name -> our name; no two share one.
        dropped: published name -> why it is not needed.
    """

    kept: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def map_transformer_keys(names: Iterable[str]) -> KeyMap:
    """Map the names of a published transformer."""

    def reason(name: str) -> str | None:
        return DROPPED_TRANSFORMER_LEAVES.get(name.rpartition(".")[2])

    return _map(names, reason, lambda name: name)


def map_tokenizer_keys(names: Iterable[str]) -> KeyMap:
    """Map the names of a published tokenizer.

    Raises:
        CheckpointError: a weight that is there in both forms.
    """
    return _map(names, DROPPED_TOKENIZER_KEYS.get, _wrapped)


def _map(
    names: Iterable[str], reason_to_drop: Callable[[str], str | None], rename: Callable[[str], str]
) -> KeyMap:
    result = KeyMap()
    taken: dict[str, str] = {}
    for name in names:
        reason = reason_to_drop(name)
        if reason is not None:
            result.dropped[name] = reason
            continue
        own = rename(name)
        if own in taken:
            raise CheckpointError(f"{taken[own]} and {name}: two names of one weight; expected one of them")
        taken[own] = name
        result.kept[name] = own
    return result


def _wrapped(name: str) -> str:
    owner, _, leaf = name.rpartition(".")
    *above, last = owner.split(".")
    if last in _NORMS:
        return f"{owner}.norm.{leaf}"
    if last in _CONVOLUTIONS or (last == "conv" and above and above[-1] in _RESIZERS):
        return f"{owner}.conv.{leaf}"
    return name


def transformer_keys(weights: Weights, *, text_max_length: int) -> Weights:
    """Return a published transformer state dict under the names and lengths of `InfinityTransformer`."""
    kept = {own: weights[name] for name, own in map_transformer_keys(weights).kept.items()}
    if "cfg_uncond" in kept:
        kept["cfg_uncond"] = fit_text_table(kept["cfg_uncond"], text_max_length)
    return kept


def tokenizer_keys(weights: Weights) -> Weights:
    """Return a published tokenizer state dict under the names of `ImageTokenizer`."""
    return {own: weights[name] for name, own in map_tokenizer_keys(weights).kept.items()}


def fit_text_table(table: Tensor, rows: int) -> Tensor:
    """Return the learned "no text" features [rows, channels] from a table of another length.

    A longer table is cut. A shorter one goes on with the values that the published code initialises it with
    (a normal of standard deviation 1.2, cut at 2, over the root of the channels, from seed 0), as its loader
    leaves them there.
    """
    if table.ndim != 2 or table.shape[0] >= rows:
        return table[:rows]
    channels = table.shape[1]
    initial = torch.empty(rows, channels)
    generator = torch.Generator().manual_seed(0)
    nn.init.trunc_normal_(initial, std=1.2, generator=generator)
    tail = initial[table.shape[0] :] / math.sqrt(channels)
    return torch.cat((table, tail.to(table.dtype)))
