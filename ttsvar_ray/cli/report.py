"""`ttsvar-ray report`: a run as a page to look through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options

if TYPE_CHECKING:
    from ttsvar_ray.api.saved import SavedRun
    from ttsvar_ray.dataset.contents import OutputSummary
    from ttsvar_ray.report.page import Entry
    from ttsvar_ray.results import RunCost

_FAILURES_SHOWN = 1000
_PICTURED = 50
"""A tree with pictures takes a CPU a second or two, one with dots some thousandths."""


def report(
    output: options.Output,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The page; by default OUTPUT/report.html.", metavar="FILE.html"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first so many prompts.", min=1, metavar="K")
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option(
            "--pictures",
            help="Draw the trajectories in the trees of the first K prompts, where the trace has their bits "
            f"(output.trace); needs the model. By default {_PICTURED} with the built-in one, else 0.",
            min=0,
            metavar="K",
        ),
    ] = None,
    settings: options.Settings = None,
) -> None:
    """Write a page of a run: what it cost and gave, a gallery to search and sort, every prompt's search tree.

    One file up to 300 prompts; above, a folder of pictures beside it. --set model.path=... says where the
    model of the trees is, --set model.device=... where it draws. Exit codes: 0 done; 2 no run at OUTPUT.

    Example: ttsvar-ray report s3://bucket/mine --to report.html
    """
    from ttsvar_ray.api.saved import load
    from ttsvar_ray.dataset.contents import read_cost, summarise_output
    from ttsvar_ray.dataset.dead_letters import read_letters
    from ttsvar_ray.dataset.layout import OutputLayout
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.report.page import Summary, write_page
    from ttsvar_ray.storage.uris import is_uri, redacted

    if to is None and is_uri(output):
        raise ConfigurationError(f"--to: expected where the page goes, {output} being a URI; add --to FILE")
    run = load(output, pictures=None if pictures is None else pictures > 0, settings=settings)
    # Where it cannot be written, that is told before everything is drawn.
    page = options.file_to_write(Path(output) / "report.html" if to is None else to, "--to")
    layout = OutputLayout(output)
    totals = summarise_output(layout)
    letters = (one for part in layout.failed_parts().values() for one in read_letters(part))
    failures = [
        (str(letter.get("prompt", "")), "; ".join(map(str, letter.get("errors", ["unknown"]))))
        for letter, _ in zip(letters, range(_FAILURES_SHOWN), strict=False)
    ]
    count = len(run) if limit is None else min(limit, len(run))
    summary = Summary(
        title=redacted(output),
        facts=_facts(run, totals, read_cost(layout, run.manifest)),
        settings={**run.manifest.content, **run.manifest.versions, "created": run.manifest.created},
        failures=failures,
        failed=totals.failed,
        prompts=count,
    )
    drawn = _PICTURED if pictures is None else pictures
    files = write_page(page, summary, _entries(run, count, drawn))
    beside = f", and {len(files) - 1} files of pictures beside it" if len(files) > 1 else ""
    typer.echo(f"{page}: {count} prompts{beside}")


def _facts(run: SavedRun, totals: OutputSummary, cost: RunCost | None) -> list[tuple[str, str]]:
    from ttsvar_ray.cli.show import cost_facts

    budget = dict(run.manifest.config.get("strategy", {})).get("budget")
    seconds = 0.0 if cost is None else cost.device_seconds
    rate = [("throughput", f"{totals.images / seconds:.3g} images/s a worker")] if seconds else []
    return [
        ("model", str(run.manifest.content.get("model.name", ""))),
        ("strategy", str(run.manifest.content.get("strategy.name", ""))),
        ("prompts with images", f"{len(run)} of {run.manifest.prompt_count}"),
        ("images", str(totals.images)),
        (
            "mean reward of the best",
            "none" if math.isnan(totals.mean_reward) else f"{totals.mean_reward:.4f}",
        ),
        ("given up", str(totals.failed)),
        ("lines without a prompt", str(run.manifest.bad_lines)),
        ("seed", str(run.manifest.seed)),
        *([] if cost is None else cost_facts(cost, budget=budget)),
        *rate,
    ]


def _entries(run: SavedRun, count: int, pictures: int) -> Iterator[Entry]:
    import dataclasses

    from ttsvar_ray.report.page import Entry

    for place, result in enumerate(itertools.islice(run, count)):
        tree = result.tree
        if tree is not None and place >= pictures:
            tree = dataclasses.replace(tree, painter=None)
        cost = {} if result.cost_images is None else {"cost in images": round(result.cost_images, 3)}
        yield Entry(
            prompt_id=result.prompt_id,
            prompt=result.prompt,
            rewards=[image.reward for image in result.images],
            histories=[image.reward_history for image in result.images],
            images=[image.encoded for image in result.images],
            tree="" if tree is None else tree.svg(),
            columns={**result.columns, **cost},
        )
