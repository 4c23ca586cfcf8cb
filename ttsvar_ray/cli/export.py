"""`ttsvar-ray export`: a run's images in the layout of another tool."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from ttsvar_ray.cli import options


class _Layout(str, enum.Enum):
    """Where the images go to."""

    WEBDATASET = "webdataset"
    FOLDER = "folder"
    GENEVAL = "geneval"
    T2I_COMPBENCH = "t2i-compbench"
    ONEIG = "oneig"
    HPS = "hps"


class Which(str, enum.Enum):
    """Of each prompt."""

    BEST = "best"
    ALL = "all"


def export(
    output: options.Output,
    to: options.To,
    layout: Annotated[_Layout, typer.Option("--layout", help="What reads it afterwards.")],
    images: Annotated[
        Which, typer.Option("--images", help="The best of each prompt, or all that were kept.")
    ] = Which.BEST,
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size", help="Images in a WebDataset shard; 1000 by default.", min=1, metavar="K"
        ),
    ] = None,
) -> None:
    """Write a run's images as WebDataset shards, an image folder, or as a benchmark reads them.

    The same command goes on after a stop. Exit codes: 0 done; 2 no run at OUTPUT, none with images, one that
    the layout cannot hold, or another export in DIR.

    Example: ttsvar-ray export outputs/mine --to shards --layout webdataset
    """
    from ttsvar_ray.dataset.card import derived_card, shards_head, table_size, write_card
    from ttsvar_ray.dataset.export import LAYOUTS, claimed, exported_images, to_webdataset
    from ttsvar_ray.dataset.manifest import read_run
    from ttsvar_ray.errors import ConfigurationError, OutputError
    from ttsvar_ray.storage.location import locate

    if shard_size is not None and layout is not _Layout.WEBDATASET:
        raise ConfigurationError(f"--shard-size: the layout {layout.value} has no shards; remove it")
    source, manifest = read_run(output)
    table = table_size(source.data_parts().values())
    if not table.rows:
        raise OutputError(f"{output}: expected images to export, found none; nothing is written")
    size = (shard_size or 1000) if layout is _Layout.WEBDATASET else None
    options.folder_to_write(to, "--to")
    # A JSON column may hold a list here and a number there, which readers of one table do not take.
    types = manifest.column_types if layout is _Layout.GENEVAL else {}
    found = exported_images(source, types, best_only=images is Which.BEST)
    with claimed(to, source, {"layout": layout.value, "images": images.value, "shard_size": size}):
        if size is not None:
            count = to_webdataset(found, to, shard_size=size)
        else:
            count = LAYOUTS[layout.value](found, to)
        if layout in (_Layout.WEBDATASET, _Layout.FOLDER):
            head = {} if size is None else shards_head(manifest, table.schema)
            card = derived_card(manifest, head, "# Images of a run of ttsvar-ray")
            write_card(locate(to / "README.md"), card)
    typer.echo(f"{to}: {count} images ({layout.value})")
