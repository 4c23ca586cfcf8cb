"""`ttsvar-ray report`: a run as a page to look through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people

if TYPE_CHECKING:
    from ttsvar_ray.api.saved import SavedRun
    from ttsvar_ray.dataset import OutputSummary
    from ttsvar_ray.report.page import Entry
    from ttsvar_ray.results import RunCost

_FAILURES_SHOWN = 1000


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
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="Draw the trajectories in the trees, where the trace has their bits (output.trace); needs "
            "the model. By default only with the built-in one.",
        ),
    ] = None,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Write a page of a run: what it cost and gave, a gallery to search and sort, every prompt's search tree.

    One file up to 300 prompts; above, a folder of pictures beside it. --set model.path=... says where the
    model of the trees is, --set model.device=... where it draws. Exit codes: 0 done; 2 no run at OUTPUT.

    Example: ttsvar-ray report s3://bucket/mine --to report.html
    """
    with errors_for_people(debug=debug):
        from ttsvar_ray.api.saved import load
        from ttsvar_ray.dataset import OutputLayout, read_cost, summarise_output
        from ttsvar_ray.dataset.dead_letters import read_letters
        from ttsvar_ray.errors import ConfigurationError
        from ttsvar_ray.report.page import Summary, write_page
        from ttsvar_ray.storage import is_uri, redacted

        if to is None and is_uri(output):
            raise ConfigurationError(
                f"--to: expected where the page goes, {output} being a URI; add --to FILE"
            )
        run = load(output, pictures=pictures, settings=settings)
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
            prompts=count,
        )
        page = Path(output) / "report.html" if to is None else to
        files = write_page(page, summary, _entries(run, count))
    beside = f", and {len(files) - 1} files of pictures beside it" if len(files) > 1 else ""
    typer.echo(f"{page}: {count} prompts{beside}")


def _facts(run: SavedRun, totals: OutputSummary, cost: RunCost | None) -> list[tuple[str, str]]:
    from ttsvar_ray.cli.show import cost_facts

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
        *([] if cost is None else cost_facts(cost)),
    ]


def _entries(run: SavedRun, count: int) -> Iterator[Entry]:
    from ttsvar_ray.report.page import Entry

    for result in itertools.islice(run, count):
        yield Entry(
            prompt_id=result.prompt_id,
            prompt=result.prompt,
            rewards=[image.reward for image in result.images],
            histories=[image.reward_history for image in result.images],
            images=[image.encoded for image in result.images],
            tree="" if result.tree is None else result.tree.svg(),
            columns=result.columns,
        )
