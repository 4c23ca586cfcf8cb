"""The text side of Infinity: a T5 encoder through transformers, and what the transformer knows of a text.

The latter is computed once per prompt and shared by its trajectories. Here is also the published addition to
prompts about people.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), P texts, C width, H heads, T padded
text length, D head width, B trajectories.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.recorded_steps import Arena
from ttsvar_ray.models.row_stability import min_linear_rows

PEOPLE_WORDS = (
    *("man", "woman", "men", "women", "boy", "girl", "child", "person", "human", "adult", "teenager"),
    *("employee", "employer", "worker", "mother", "father", "sister", "brother"),
    *("grandmother", "grandfather", "son", "daughter"),
)
"""Looked for anywhere in a prompt, as published: "a German season" has two of them."""

ADDITION = ". very smooth faces, good looking faces, face to the camera, perfect facial features"


def with_positive_prompt(prompt: str) -> str:
    """Return a prompt with the published addition if it speaks of people, by any of `PEOPLE_WORDS`."""
    return prompt + ADDITION if any(word in prompt for word in PEOPLE_WORDS) else prompt


TEXT_STEP = 16
"""Texts are padded to a multiple of it, so that there are few lengths, and a prompt of 28 tokens is not
computed as one of 512."""


_LAYER = re.compile(r"encoder\.block\.(\d+)\.")


def padded_length(tokens: int, longest: int) -> int:
    """Return the length that a text of so many tokens is padded to, at most `longest`."""
    return min(-(-tokens // TEXT_STEP) * TEXT_STEP, longest)


def _check_layers(path: Path) -> None:
    """Refuse a config.json that would have other layers built than the weights have: many take for ever.

    Raises:
        CheckpointError: it is no JSON object, or says another number of layers.
    """
    index, file = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        names = json.loads(index.read_bytes())["weight_map"].keys()
    elif file.is_file():
        with safe_open(file, framework="pt") as weights:
            names = weights.keys()
    else:
        return
    found = {match[1] for name in names if (match := _LAYER.match(name))}
    said = json.loads((path / "config.json").read_bytes())
    layers = said.get("num_layers") if isinstance(said, dict) else None
    if layers is not None and layers != len(found):
        raise CheckpointError(
            f"{path}: config.json says num_layers {str(layers)[:20]}, the weights have {len(found)}"
        )


class TextFeatures(Protocol):
    """Turns texts into features of one padded length, at most the transformer's."""

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return float32 [P, T, channels] and the number of real tokens, int64 [P]."""
        ...

    def cuts(self, text: str) -> bool:
        """Whether a text has more tokens than are read."""
        ...


class T5TextEncoder:
    """Encodes prompts as Infinity expects: no template, cut to a fixed number of tokens.

    A text's features do not depend on the other texts of a call: each is encoded at its own length.

    Args:
        model: a transformers `T5EncoderModel` in evaluation mode.
        tokenizer: its tokenizer; must close every text with an end token.
        max_length: tokens to cut to.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def load(cls, path: Path, *, max_length: int, device: torch.device, dtype: torch.dtype) -> T5TextEncoder:
        """Load `path` (config.json, model.safetensors, tokenizer files); never reaches for the network.

        Raises:
            CheckpointError: the directory is absent or incomplete.
        """
        from transformers import AutoTokenizer, T5EncoderModel

        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path}: expected a T5 encoder directory with config.json, model.safetensors and a tokenizer"
            )
        _check_layers(path)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model, report = T5EncoderModel.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # Each tensor goes straight to where it stays (accelerate), not by way of a copy in host memory.
            device_map={"": device},
        )
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(f"{path}: weights lack {len(missing)} keys, first {missing[:3]}")
        return cls(model.eval(), tokenizer, max_length)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = [self._encode(text) for text in texts]
        longest = max(len(features) for features, _ in encoded)
        features = [F.pad(features, (0, 0, 0, longest - len(features))) for features, _ in encoded]
        return torch.stack(features), torch.tensor([tokens for _, tokens in encoded])

    def _encode(self, text: str) -> tuple[Tensor, int]:
        """Return float32 [T, channels] of one text, and its real tokens."""
        ids = self.tokenizer(text, max_length=self.max_length, truncation=True)["input_ids"]
        tokens, device = len(ids), self.model.device
        if tokens < 1:
            raise CheckpointError(
                f"tokenizer: no token at all for {text!r}; expected at least an end token per text"
            )
        length = padded_length(tokens, self.max_length)
        # The encoder's linears are not ours to make row-stable: on a CPU give them enough rows instead.
        rows = math.ceil(min_linear_rows() / length) if device.type == "cpu" else 1
        padded = torch.full((rows, length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(padded)
        padded[0, :tokens] = torch.tensor(ids)
        mask[:, :tokens] = 1
        output = self.model(input_ids=padded.to(device), attention_mask=mask.to(device))
        return output.last_hidden_state[0].float(), tokens

    def cuts(self, text: str) -> bool:
        return len(self.tokenizer(text, verbose=False)["input_ids"]) > self.max_length


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The text side of a forward pass.

    Attributes:
        pooled: float32 [S, P, C], first token and source of all modulations.
        block_modulation: float32 [S, P, 6, C], added to each block's own.
        head_modulation: float32 [S, P, 2, C], scale and shift before the head.
        text_mask: bool [P, T], true for real tokens; both streams share it.
        keys, values: per layer [S, P, H, T, D] for cross-attention.
    """

    pooled: Tensor
    block_modulation: Tensor
    head_modulation: Tensor
    text_mask: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_streams(self) -> int:
        return self.pooled.shape[0]

    @property
    def nbytes(self) -> int:
        tensors = (self.pooled, self.block_modulation, self.head_modulation, *self.keys, *self.values)
        return sum(t.numel() * t.element_size() for t in tensors)

    def first_streams(self, count: int) -> Conditioning:
        """Return the first so many streams; nothing is copied."""
        return Conditioning(
            pooled=self.pooled[:count],
            block_modulation=self.block_modulation[:count],
            head_modulation=self.head_modulation[:count],
            text_mask=self.text_mask,
            keys=tuple(keys[:count] for keys in self.keys),
            values=tuple(values[:count] for values in self.values),
        )

    def gather(self, texts: Tensor) -> Conditioning:
        """Select texts; `texts` is int64 [P'] on the conditioning's device."""
        return Conditioning(
            pooled=self.pooled.index_select(1, texts),
            block_modulation=self.block_modulation.index_select(1, texts),
            head_modulation=self.head_modulation.index_select(1, texts),
            text_mask=self.text_mask.index_select(0, texts),
            keys=tuple(k.index_select(1, texts) for k in self.keys),
            values=tuple(v.index_select(1, texts) for v in self.values),
        )


@dataclass(frozen=True, slots=True)
class TextKeys:
    """What some rows of a batch attend to in one layer.

    Attributes:
        keys, values: [E, H, T, D]; E rows, or fewer of which each serves as many rows, one behind the other.
        mask: [E, 1, 1, T], bool, or minus infinity where there is nothing in the dtype of the keys.
        rows: int64 [E], which rows of the batch; None for all, in order.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows whose texts are padded alike.

    Attributes:
        parts: the conditionings that hold their texts, counted through.
        text_rows: int64 [B'], the text of each trajectory; None means that trajectory b has text b.
        rows: int64 [S * B'] in the batch; None for all.
        length: T.
    """

    parts: tuple[Conditioning, ...]
    text_rows: Tensor | None
    rows: Tensor | None
    length: int


class BatchTexts:
    """What the rows of one batch need of their texts, scale after scale.

    On a CPU rows attend in groups of one padded length, so that a row never depends on how long its
    neighbours' texts are. A GPU attends to all at the longest length, in one call.

    Args:
        parts: conditionings, all with as many streams; their texts are counted through.
        text_rows: the text of each trajectory; None means that trajectory b has text b.
        streams: S, the first so many of the conditionings' streams.
        length: what all texts are padded to; None is the longest.
    """

    def __init__(
        self,
        parts: Sequence[Conditioning],
        text_rows: Sequence[int] | None = None,
        *,
        streams: int | None = None,
        length: int | None = None,
    ) -> None:
        self.streams = parts[0].num_streams if streams is None else streams
        if self.streams < parts[0].num_streams:
            parts = [part.first_streams(self.streams) for part in parts]
        self._parts = tuple(parts)
        self._device = parts[0].pooled.device
        self._text_rows = None if text_rows is None else self._index(text_rows)
        self._groups = self._by_length(text_rows) if self._device.type == "cpu" else [self._all(length)]

    @property
    def num_rows(self) -> int:
        """R."""
        trajectories = self._parts[0].pooled.shape[1] if self._text_rows is None else len(self._text_rows)
        return self.streams * trajectories

    @property
    def pooled(self) -> Tensor:
        """First tokens and source of all modulations, float32 [R, C]."""
        return rows_of([part.pooled for part in self._parts], self._text_rows)

    @property
    def block_modulation(self) -> Tensor:
        """What all blocks share, float32 [R, 6, C]."""
        return rows_of([part.block_modulation for part in self._parts], self._text_rows)

    @property
    def head_modulation(self) -> Tensor:
        """Scale and shift before the head, float32 [R, 2, C]."""
        return rows_of([part.head_modulation for part in self._parts], self._text_rows)

    def keys(self, layer: int) -> tuple[TextKeys, ...]:
        """Return what the rows attend to in one layer.

        Layer by layer, since the keys of all layers and texts at once would fill memory.
        """
        return tuple(self._keys(group, layer) for group in self._groups)

    def _keys(self, group: _Group, layer: int) -> TextKeys:
        def spread(tensors: Sequence[Tensor], axis: int) -> Tensor:
            return rows_of([_lengthened(t, group.length, axis) for t in tensors], group.text_rows)

        mask = spread([part.text_mask.expand(self.streams, -1, -1) for part in group.parts], 2)
        return TextKeys(
            keys=spread([part.keys[layer] for part in group.parts], 3),
            values=spread([part.values[layer] for part in group.parts], 3),
            mask=mask[:, None, None, :],
            rows=group.rows,
        )

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self._device)

    def _all(self, length: int | None) -> _Group:
        longest = max(part.text_mask.shape[1] for part in self._parts)
        return _Group(self._parts, self._text_rows, None, longest if length is None else length)

    def _by_length(self, text_rows: Sequence[int] | None) -> list[_Group]:
        if len({part.text_mask.shape[1] for part in self._parts}) == 1:
            return [self._all(None)]
        owner = [part for part in self._parts for _ in range(part.text_mask.shape[0])]
        wanted = range(len(owner)) if text_rows is None else text_rows
        groups = []
        for length in sorted({owner[text].text_mask.shape[1] for text in wanted}):
            texts_of_length = [text for text, part in enumerate(owner) if part.text_mask.shape[1] == length]
            place = {text: position for position, text in enumerate(texts_of_length)}
            members = [row for row, text in enumerate(wanted) if text in place]
            rows = [stream * len(wanted) + row for stream in range(self.streams) for row in members]
            parts = tuple(part for part in self._parts if part.text_mask.shape[1] == length)
            texts = self._index([place[wanted[row]] for row in members])
            groups.append(_Group(parts, texts, self._index(rows), length))
        return groups


PACKED_LENGTHS = (32, 64, 128, 256)
"""What texts are padded to on a GPU: few lengths, since passes are recorded for each."""


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """What the rows of one batch need of their texts, of all layers, in memory of a fixed address.

    Attributes:
        streams: S.
        pooled, block_modulation, head_modulation: as in `BatchTexts`.
        mask: [E, 1, 1, T] in the dtype of the keys, minus infinity where a text has ended. Each of the E
            entries serves R / E rows, one behind the other.
        memory: [2 * layers, E, H, T, D]: the keys of all layers, then the values.
        address: equal for texts of which all tensors lie at one address with one shape.
    """

    streams: int
    pooled: Tensor
    block_modulation: Tensor
    head_modulation: Tensor
    mask: Tensor
    memory: Tensor
    address: Hashable

    @property
    def num_rows(self) -> int:
        """R."""
        return self.pooled.shape[0]

    def keys(self, layer: int) -> tuple[TextKeys, ...]:
        """Return what the rows attend to in one layer."""
        return (TextKeys(self.memory[layer], self.memory[len(self.memory) // 2 + layer], self.mask),)


class TextMemory:
    """Packs the texts of one micro-batch at a time; for a GPU, where each small copy costs a launch.

    Packing again for the same texts and rows, scale after scale, does nothing.
    """

    def __init__(self) -> None:
        self._arena = Arena()
        self._packed: tuple[tuple[Any, ...], PackedTexts] | None = None

    def packed(
        self, parts: tuple[Conditioning, ...], text_rows: tuple[int, ...], *, streams: int, length: int | None
    ) -> PackedTexts:
        """Return the texts of some trajectories.

        Args:
            parts: conditionings of one text each.
            text_rows: the part of each trajectory.
            streams: S, the first so many of the conditionings' streams.
            length: what all texts are padded to, with an entry for every row: shapes then depend on nothing
                else. None: the next of `PACKED_LENGTHS`, with an entry a text where each has as many rows.
        """
        if self._packed is not None:
            (known_parts, known_rows, *rest), packed = self._packed
            if known_parts is parts and known_rows is text_rows and rest == [streams, length]:
                return packed
        entries = list(text_rows)
        each = len(text_rows) // len(parts)
        if length is None and entries == [row // each for row in range(len(entries))]:
            entries = list(range(len(parts)))
        longest = max(part.text_mask.shape[1] for part in parts)
        fitting = (each for each in PACKED_LENGTHS if each >= longest)
        padded = next(fitting, longest) if length is None else length
        packed = self._pack(parts, text_rows, entries, streams, padded)
        self._packed = (parts, text_rows, streams, length), packed
        return packed

    def _pack(
        self,
        parts: tuple[Conditioning, ...],
        text_rows: tuple[int, ...],
        entries: list[int],
        streams: int,
        length: int,
    ) -> PackedTexts:
        first, count = parts[0], len(entries)
        layers, (_, _, heads, _, width) = len(first.keys), first.keys[0].shape
        dtype, device = first.keys[0].dtype, first.pooled.device
        modulations = [
            rows_of([getattr(part, name)[:streams] for part in parts], _index(text_rows, device))
            for name in ("pooled", "block_modulation", "head_modulation")
        ]
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in modulations]
        shapes.append(((streams * count, 1, 1, length), dtype))
        shapes.append(((2 * layers, streams * count, heads, length, width), dtype))
        *places, mask, memory = self._arena.tensors(shapes, device)
        for place, tensor in zip(places, modulations, strict=True):
            place.copy_(tensor)
        mask.fill_(-math.inf)
        # What is masked is multiplied by zero, so it must be a number.
        memory.zero_()
        by_stream, masks = memory.unflatten(1, (streams, count)), mask.view(streams, count, length)
        start = 0
        for entry, run in itertools.groupby(entries):
            stop, part = start + len(list(run)), parts[entry]
            both = torch.stack((*part.keys, *part.values))[:, :streams]
            by_stream[:, :, start:stop, :, : both.shape[-2]] = both
            masks[:, start:stop, : part.text_mask.shape[1]].masked_fill_(part.text_mask, 0.0)
            start = stop
        address = (self._arena.generation, tuple(shapes))
        pooled, block_modulation, head_modulation = places
        return PackedTexts(
            streams=streams,
            pooled=pooled,
            block_modulation=block_modulation,
            head_modulation=head_modulation,
            mask=mask,
            memory=memory,
            address=address,
        )


def _index(values: Sequence[int], device: torch.device) -> Tensor:
    index = torch.tensor(list(values), dtype=torch.int64)
    return (index.pin_memory() if device.type == "cuda" else index).to(device, non_blocking=True)


def _lengthened(tensor: Tensor, length: int, axis: int) -> Tensor:
    """Return a tensor with zeros behind an axis up to a length."""
    missing = length - tensor.shape[axis]
    if missing == 0:
        return tensor
    return F.pad(tensor, (0, 0) * (tensor.ndim - 1 - axis) + (0, missing))


def rows_of(parts: Sequence[Tensor], text_rows: Tensor | None) -> Tensor:
    """Spread texts [S, P_i, ...] of some parts over trajectories: [S * B, ...].

    Args:
        parts: the texts of all parts are counted through.
        text_rows: int64 [B], the text of each trajectory; None means that trajectory b has text b.
    """
    per_text = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
    if text_rows is not None:
        per_text = per_text.index_select(1, text_rows)
    return per_text.flatten(0, 1)
