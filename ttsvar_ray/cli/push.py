"""`ttsvar-ray push`: a run as a data set of the Hugging Face hub."""

from __future__ import annotations

import io
import itertools
import re
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli.errors import ExitCode

if TYPE_CHECKING:
    from ttsvar_ray.dataset.card import Publication, ScoreRow
    from ttsvar_ray.dataset.layout import OutputLayout
    from ttsvar_ray.dataset.manifest import RunManifest
    from ttsvar_ray.report.push import PushedFile

SHEET_IMAGES = 24
SHEET_PATH = "contact_sheet.png"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def push(
    output: Annotated[str, typer.Argument(help="Output of a run: a folder or URI.", metavar="OUTPUT")],
    repository: Annotated[
        str, typer.Argument(help="Data set of the hub; made if it is not there.", metavar="OWNER/NAME")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody to see; private without this.")
    ] = False,
    licence: Annotated[
        str,
        typer.Option(
            "--licence", help="Of the images, by the hub's name for it, such as cc-by-4.0.", metavar="ID"
        ),
    ] = "unknown",
    model_licence: Annotated[
        str | None,
        typer.Option(
            "--model-licence",
            help="Of the model's weights; that of published models is known.",
            metavar="ID",
        ),
    ] = None,
    card_only: Annotated[
        bool, typer.Option("--card-only", help="Print the card and stop there; nothing is sent.")
    ] = False,
) -> None:
    """Push a run to the hub, part by part, with a card; the same command goes on after a stop.

    First the output is read as `ttsvar-ray check` does. What is there is not sent again. The token is that of
    huggingface_hub: HF_TOKEN, or `hf auth login`. Exit codes: 0 done; 1 the output is not whole; 2 no run, or
    a data set that cannot be written to; 75 stopped early, the same command goes on.

    Example: ttsvar-ray push outputs/mine me/rings --licence cc-by-4.0
    """
    from ttsvar_ray.dataset.card import MARK, UNKNOWN_LICENCE, card_text
    from ttsvar_ray.dataset.manifest import read_run
    from ttsvar_ray.errors import ConfigurationError, InterruptedRunError

    if not _REPOSITORY.fullmatch(repository):
        raise ConfigurationError(f"OWNER/NAME: expected a data set such as me/rings, got {repository!r}")
    layout, manifest = read_run(output)
    if not card_only:
        _require_whole(output)
    publication = published(
        layout, manifest, repository=repository, licence=licence, model_licence=model_licence
    )
    card = card_text(manifest, has_trace=publication.trace.rows > 0, publication=publication)
    if card_only:
        typer.echo(card)
        return
    present = layout.card_file.read_text() if layout.card_file.is_file() else card
    if MARK not in present:
        typer.echo(f"card      {layout.card_file} as it is: it was made somebody's own", err=True)
        card = present
    elif licence == UNKNOWN_LICENCE:
        typer.echo("card      licence of the images: unknown; --licence names it, each time", err=True)
    try:
        _send(layout, manifest, repository, card=card, is_public=public)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; what is there stays, the same command goes on") from None


def _require_whole(output: str) -> None:
    from ttsvar_ray.cli.check import check_output_at

    if not check_output_at(output).is_whole:
        typer.echo("ttsvar-ray: not pushed: the output is not whole", err=True)
        raise typer.Exit(ExitCode.FAILED)


def _send(
    layout: OutputLayout, manifest: RunManifest, repository: str, *, card: str, is_public: bool
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from ttsvar_ray.cli.show import bytes_text
    from ttsvar_ray.report.push import PushedFile, push

    disable_progress_bars()
    own = [PushedFile.of("README.md", card.encode()), _sheet(layout)]
    found = push(
        layout,
        manifest,
        repository,
        api=HfApi(),
        own=own,
        is_public=is_public,
        tell=lambda line: typer.echo(line, err=True),
    )
    typer.echo(
        f"{found.url}: {found.files} files, {found.sent} of them sent ({bytes_text(found.sent_bytes)}) in "
        f"{found.commits} commits"
    )


def published(
    layout: OutputLayout, manifest: RunManifest, *, repository: str, licence: str, model_licence: str | None
) -> Publication:
    """Return what the card of a run says of it; `model_licence` None is what is known of its model."""
    from ttsvar_ray.dataset.card import Publication, table_size
    from ttsvar_ray.dataset.contents import read_columns, read_cost, summarise_output
    from ttsvar_ray.dataset.sessions import read_sessions
    from ttsvar_ray.evaluate.score_table import tables
    from ttsvar_ray.models.registry import weights_licence

    chunks = list(layout.data_parts())
    devices = [device for session in read_sessions(layout) for device in session.devices]
    return Publication(
        repository=repository,
        licence=licence,
        model_licence=model_licence or weights_licence(str(manifest.content.get("model.name", ""))),
        reward=", ".join(sorted(set(read_columns(layout, ["reward_name"])["reward_name"].to_pylist()))),
        images=table_size(map(layout.data_part, chunks)),
        trace=table_size(map(layout.trace_part, chunks)),
        totals=summarise_output(layout),
        cost=read_cost(layout, manifest),
        scores=_scores(layout),
        tables=tables(layout),
        devices=tuple(dict.fromkeys(devices)),
        sheet=SHEET_PATH,
    )


def _scores(layout: OutputLayout) -> list[ScoreRow]:
    """Return the mean of each score over the best images, the steering reward first."""
    import numpy as np

    from ttsvar_ray.cli.score import shown_scores
    from ttsvar_ray.dataset.card import ScoreRow

    return [
        ScoreRow(name=name, prompts=len(good), mean=float(good.mean()), error=error)
        for name, values, error in shown_scores(layout, _score_tables(layout))
        if len(good := values[np.isfinite(values)])
    ]


def _score_tables(layout: OutputLayout) -> list[str]:
    """Return the tables that give each image a number under the table's name."""
    import pyarrow as pa

    from ttsvar_ray.evaluate.score_table import read_scores, tables

    found = []
    for table in tables(layout):
        schema = read_scores(layout, table, next(iter(layout.data_parts()))).schema
        if table in schema.names and pa.types.is_floating(schema.field(table).type):
            found.append(table)
    return found


def _sheet(layout: OutputLayout) -> PushedFile:
    """Return the first images on one page."""
    from ttsvar_ray.cli.sheet import COLUMNS, best_images
    from ttsvar_ray.errors import OutputError
    from ttsvar_ray.report.contact_sheet import contact_sheet
    from ttsvar_ray.report.push import PushedFile

    shown = list(itertools.islice(best_images(layout), SHEET_IMAGES))
    if not shown:
        raise OutputError(f"{layout.root}: expected images to push, found none")
    file = io.BytesIO()
    page = contact_sheet(
        [pixels for _, pixels, _ in shown], [prompt for prompt, _, _ in shown], columns=COLUMNS
    )
    page.save(file, format="PNG")
    return PushedFile.of(SHEET_PATH, file.getvalue())
