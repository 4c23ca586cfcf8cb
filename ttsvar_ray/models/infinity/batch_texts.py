"""What the rows of a batch need of their texts: group by group on a CPU, packed in one piece for a GPU.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), P texts, C width, H heads, T padded
text length, D head width, B trajectories, R = S * B rows, E entries of packed texts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttsvar_ray.models.infinity.text import Conditioning
from ttsvar_ray.models.recorded_steps import Arena
from ttsvar_ray.vision.pixels import to_device


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
        streams: which of the conditionings' streams; None are all.
        length: what all texts are padded to; None is the longest.
    """

    def __init__(
        self,
        parts: Sequence[Conditioning],
        text_rows: Sequence[int] | None = None,
        *,
        streams: range | None = None,
        length: int | None = None,
    ) -> None:
        if streams is not None and len(streams) < parts[0].num_streams:
            parts = [part.of_streams(streams) for part in parts]
        self.streams = parts[0].num_streams
        self._parts = tuple(parts)
        self._device = parts[0].pooled.device
        self._text_rows = None if text_rows is None else _index(text_rows, self._device)
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
            texts = _index([place[wanted[row]] for row in members], self._device)
            groups.append(_Group(parts, texts, _index(rows, self._device), length))
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
        self,
        parts: tuple[Conditioning, ...],
        text_rows: tuple[int, ...],
        *,
        streams: range,
        length: int | None,
    ) -> PackedTexts:
        """Return the texts of some trajectories.

        Args:
            parts: conditionings of one text each.
            text_rows: the part of each trajectory.
            streams: which of the conditionings' streams.
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
        streams: range,
        length: int,
    ) -> PackedTexts:
        parts = tuple(part.of_streams(streams) for part in parts)
        first, count, num_streams = parts[0], len(entries), len(streams)
        layers, (_, _, heads, _, width) = len(first.keys), first.keys[0].shape
        dtype, device = first.keys[0].dtype, first.pooled.device
        modulations = [
            rows_of([getattr(part, name) for part in parts], _index(text_rows, device))
            for name in ("pooled", "block_modulation", "head_modulation")
        ]
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in modulations]
        shapes.append(((num_streams * count, 1, 1, length), dtype))
        shapes.append(((2 * layers, num_streams * count, heads, length, width), dtype))
        *places, mask, memory = self._arena.tensors(shapes, device)
        for place, tensor in zip(places, modulations, strict=True):
            place.copy_(tensor)
        mask.fill_(-math.inf)
        # What is masked is multiplied by zero, so it must be a number.
        memory.zero_()
        by_stream, masks = memory.unflatten(1, (num_streams, count)), mask.view(num_streams, count, length)
        start = 0
        for entry, run in itertools.groupby(entries):
            stop, part = start + len(list(run)), parts[entry]
            both = torch.stack((*part.keys, *part.values))
            by_stream[:, :, start:stop, :, : both.shape[-2]] = both
            masks[:, start:stop, : part.text_mask.shape[1]].masked_fill_(part.text_mask, 0.0)
            start = stop
        address = (self._arena.generation, tuple(shapes))
        pooled, block_modulation, head_modulation = places
        return PackedTexts(
            streams=num_streams,
            pooled=pooled,
            block_modulation=block_modulation,
            head_modulation=head_modulation,
            mask=mask,
            memory=memory,
            address=address,
        )


def _index(values: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor(list(values), dtype=torch.int64), device)


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
