"""What became of a prompt, as rows of the data set, one for each image that is kept; and their one schema.

Comes in: results whose images are references or bytes. Goes out: dicts in the columns of the schema, one
image at a time. A row holds nothing of when or where it was made. `image_rows` reads rows back.

The schema is explicit and has the metadata that makes `datasets` open pictures. Types are never inferred
while writing: a part whose column is all empty must have the type of its neighbours, or the parts cannot be
read together.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ttsvar_ray.columns import ColumnType, held
from ttsvar_ray.dataset.accounting import PlanRecord
from ttsvar_ray.dataset.contents import opened
from ttsvar_ray.errors import DamagedImageError, OutputError, brief
from ttsvar_ray.results import PromptResult, ResultImage
from ttsvar_ray.storage.location import Location

if TYPE_CHECKING:
    from PIL import Image

# `binary`, not `large_binary`: `datasets` ignores the Image feature of a large one.
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_OWN_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("row", pa.int64()),
    ("prompt_id", pa.string()),
    ("ordinal", pa.int32()),
    ("prompt", pa.string()),
    ("image", IMAGE_TYPE),
    ("image_rank", pa.int32()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("model", pa.string()),
    ("strategy", pa.string()),
    ("seed", pa.int64()),
    ("reward", pa.float32()),
    ("reward_name", pa.string()),
    ("reward_history", pa.list_(pa.float32())),
    ("reward_members", pa.list_(pa.float32())),
    ("text_truncated", pa.bool_()),
    ("reward_texts_truncated", pa.int32()),
    ("rewards_not_finite", pa.int32()),
    ("lineage", pa.list_(pa.int32())),
)

ROUNDS_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("round", pa.int32()),
    ("rounds", pa.int32()),
    ("stopped", pa.string()),
    ("cost_images", pa.float32()),
)
"""Of an adaptive search only."""

REWRITTEN_FIELD = ("prompt_used", pa.string())
"""What the model read, where prompts are rewritten."""

BITS_FIELD = ("bits", pa.list_(pa.binary()))

PICTURE = ("image", "bits")
"""Columns that are large, and no words."""

_CARRIED_PREFIX = "input_"
_OF_IMAGES = ("row", "prompt_id", "ordinal", "prompt", "image", "image_rank", "reward", "lineage")
"""What all that look at images need of a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedColumn:
    """A column of the caller's that is carried through.

    Attributes:
        source: its name in the prompt file.
        name: its name in the output: the same, or prefixed where the output has that name already.
        type: fixed once for the whole prompt set.
    """

    source: str
    name: str
    type: ColumnType

    def to_output(self, value: Any) -> Any:
        """Return a value of the prompt file as the output column holds it."""
        if value is None:
            return None
        if self.type.is_json:
            return json.dumps(value, ensure_ascii=False, default=str)
        return float(value) if self.type == ColumnType.FLOAT64 else value


def carried_columns(types: Mapping[str, ColumnType]) -> tuple[CarriedColumn, ...]:
    """Name the caller's columns in the output.

    A name that the output uses itself gets the prefix `input_`, once more where that is taken, too.
    """
    own = {name for name, _ in (*_OWN_FIELDS, *ROUNDS_FIELDS, REWRITTEN_FIELD, BITS_FIELD)}
    columns = []
    for source, column_type in types.items():
        name = source
        while name in own or (name != source and name in types):
            name = f"{_CARRIED_PREFIX}{name}"
        columns.append(CarriedColumn(source=source, name=name, type=column_type))
    return tuple(columns)


def data_schema(
    carried: tuple[CarriedColumn, ...], *, bits: bool, rounds: bool = False, rewritten: bool = False
) -> pa.Schema:
    """Return the schema of the data parts.

    Args:
        carried: the caller's columns, which come last.
        bits: whether the packed bits of each image are kept.
        rounds: whether there may be more than one.
        rewritten: whether prompts are.
    """
    own = [
        *_OWN_FIELDS,
        *((REWRITTEN_FIELD,) if rewritten else ()),
        *(ROUNDS_FIELDS if rounds else ()),
        *((BITS_FIELD,) if bits else ()),
    ]
    fields = [*own, *((column.name, column.type.arrow) for column in carried)]
    # A struct of the caller's with the fields of an image need not be one.
    features = {
        name: feature
        for index, (name, kind) in enumerate(fields)
        if (feature := _feature(kind)) is not None and (index < len(own) or kind != IMAGE_TYPE)
    }
    metadata = json.dumps({"info": {"features": features}})
    return pa.schema(fields).with_metadata({b"huggingface": metadata.encode()})


def _feature(kind: pa.DataType) -> dict[str, str] | None:
    """Return the Hugging Face feature of a column, or None where its arrow type says it better.

    The name of the list feature changed between versions of `datasets`; a column without a feature
    is inferred, by every version, from its arrow type.
    """
    if kind == IMAGE_TYPE:
        return {"_type": "Image"}
    return {"dtype": _DTYPES[kind], "_type": "Value"} if kind in _DTYPES else None


_DTYPES = {
    pa.bool_(): "bool",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.string(): "string",
    pa.binary(): "binary",
}


SUFFIXES = {"png": "png", "webp": "webp", "jpeg": "jpg"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What all rows of a run have in common.

    Attributes:
        rounds: whether rows say what became of their prompt's rounds.
        rewritten: whether rows say what the model read in place of their prompt.
        image_costs: of the plan (`costs.plan_cost.image_costs`); empty where they are not counted.
        plan: the plan itself; without it parts do not say what ran for them.
    """

    model: str
    strategy: str
    seed: int
    reward_name: str
    carried: tuple[CarriedColumn, ...] = ()
    bits: bool = False
    rounds: bool = False
    rewritten: bool = False
    image_costs: tuple[float, ...] = ()
    plan: PlanRecord | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        return data_schema(self.carried, bits=self.bits, rounds=self.rounds, rewritten=self.rewritten)


def rows_of(
    finished: Iterable[PromptResult], context: RowContext, resolve: Callable[[Any], bytes]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of finished prompts, best image of each first, fetching one image at a time.

    Raises:
        DamagedImageError: bytes of an image changed on their way.
    """
    for outcome in finished:
        for kept in sorted(outcome.images, key=lambda image: image.rank):
            yield _row(outcome, kept, context, resolve)


def _row(
    outcome: PromptResult, kept: ResultImage, context: RowContext, resolve: Callable[[Any], bytes]
) -> dict[str, Any]:
    prompt, image = outcome.prompt, kept.image
    content = resolve(image.payload)
    if not image.is_intact(content):
        raise DamagedImageError(
            f"image {kept.rank} of prompt {prompt.key}: its bytes changed between its worker and here"
        )
    name = f"{prompt.row:08d}-{kept.rank}.{SUFFIXES[image.image_format]}"
    row: dict[str, Any] = {
        "row": prompt.row,
        "prompt_id": prompt.prompt_id,
        "ordinal": prompt.ordinal,
        "prompt": prompt.text,
        "image": {"bytes": content, "path": name},
        "image_rank": kept.rank,
        "width": image.width,
        "height": image.height,
        "model": context.model,
        "strategy": context.strategy,
        "seed": context.seed,
        "reward": kept.reward,
        "reward_name": context.reward_name,
        "reward_history": list(kept.reward_history),
        "reward_members": list(kept.member_rewards),
        "text_truncated": outcome.counters.get("text_truncated", 0) > 0,
        "reward_texts_truncated": outcome.counters.get("reward_texts_truncated", 0),
        "rewards_not_finite": outcome.counters.get("rewards_not_finite", 0),
        "lineage": list(kept.lineage),
    }
    if context.rewritten:
        row["prompt_used"] = prompt.model_text
    if context.rounds:
        row |= {
            "round": kept.round_index,
            "rounds": outcome.rounds,
            "stopped": outcome.stopped,
            "cost_images": outcome.cost_images(context.image_costs),
        }
    if context.bits:
        row["bits"] = list(kept.bits)
    for column in context.carried:
        row[column.name] = column.to_output(prompt.columns.get(column.source))
    return row


def image_rows(
    part: Location, rows: int, columns: Sequence[str] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a part, so many at a time, with times, of which Python does not have all, as text.

    Args:
        columns: those that are wanted, which must be there; None is all, with those of every image.

    Raises:
        OutputError: the part is damaged, or another program's.
    """
    for batch in _image_batches(part, rows, columns):
        arrays = [
            array.cast(pa.string()) if pa.types.is_temporal(array.type) else held(array, array.type)
            for array in batch.columns
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names).to_pylist()


def _image_batches(part: Location, rows: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with opened(part, columns or _OF_IMAGES) as parquet:
        yield from parquet.iter_batches(batch_size=rows, columns=columns)


def picture_of(encoded: bytes, *, within: int | None = None) -> Image.Image:
    """Return an image of a run, decoded, as RGB.

    Args:
        encoded: the file.
        within: most pixels of a side; None is all that there are.

    Raises:
        OutputError: its bytes are no image.
    """
    from PIL import Image

    try:
        picture: Image.Image = Image.open(io.BytesIO(encoded))
        if within is not None:
            # Before anything else: of a JPEG not even all is decoded then.
            picture.thumbnail((within, within))
        return picture.convert("RGB")
    except Exception as error:  # noqa: BLE001 - decoders raise whatever damaged bytes lead them to
        raise OutputError(
            f"an image does not decode ({brief(error)}); `ttsvar-ray check` says which"
        ) from None
