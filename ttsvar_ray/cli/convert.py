"""`ttsvar-ray convert`: published files of a model to a directory of safetensors, once."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class _StoredDtype(str, enum.Enum):
    """What the transformer's blocks are written as."""

    AS_STORED = "as-stored"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of the published files, hf:OWNER/NAME[@REVISION], or a transformer's .pth file.",
            metavar="SRC",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Model directory to make.", metavar="DIR")],
    preset: Annotated[
        str, typer.Option("--preset", help="Which published model, for example infinity-2b.", metavar="NAME")
    ],
    dtype: Annotated[
        _StoredDtype, typer.Option("--dtype", help="Of the transformer's blocks; the rest is kept.")
    ] = _StoredDtype.AS_STORED,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="The image tokenizer's .pth file.", metavar="FILE")
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option("--text-encoder", help="Folder of flan-t5-xl, or hf:OWNER/NAME.", metavar="PATH"),
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="Reward of the model directory.", metavar="NAME")
    ] = None,
    reward_path: Annotated[
        Path | None, typer.Option("--reward-path", help="Its weights, to be copied.", metavar="PATH")
    ] = None,
    extractor: Annotated[
        str | None, typer.Option("--extractor", help="Features of the model directory.", metavar="NAME")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option("--backbone", help="Their weights, to be copied.", metavar="PATH")
    ] = None,
) -> None:
    """Convert published weights to a model directory; the originals are only read.

    Refuses to overwrite. Checks names and shapes before writing, and compares after. Exit codes: 0 done; 2
    nothing usable at SRC, or DIR is there already.

    Example: ttsvar-ray convert weights/infinity --to models/infinity-2b --preset infinity-2b
    """
    import torch

    from ttsvar_ray.models.infinity.convert import Companion, with_files
    from ttsvar_ray.models.infinity.convert import convert as convert_infinity
    from ttsvar_ray.models.infinity.presets import find_preset
    from ttsvar_ray.models.infinity.published import describe_preset

    wanted = find_preset(preset)
    file = Path(source).expanduser()
    is_file = file.is_file()
    description = with_files(
        describe_preset(wanted, path=str(file.parent) if is_file else source, text_encoder=text_encoder),
        transformer=file if is_file else None,
        tokenizer=tokenizer,
    )
    dtypes = {_StoredDtype.FLOAT32: torch.float32, _StoredDtype.BFLOAT16: torch.bfloat16}
    convert_infinity(
        description,
        to,
        dtype=dtypes.get(dtype),
        reward=Companion(name=reward or wanted.reward, path=reward_path),
        extractor=Companion(name=extractor or wanted.extractor, path=backbone),
        report=typer.echo,
    )
    typer.echo(f"{to}: a model directory; ttsvar-ray generate --model {to} ...")
