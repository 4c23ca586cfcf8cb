"""A simulated run in words and tables, and where its workers' time went as a plot of matplotlib's."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ttsvar_ray.cli.show import bytes_text, duration, table_lines
from ttsvar_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from ttsvar_ray.simulation.result import SimulationResult


def _between_start_and_tail(result: SimulationResult) -> str:
    """Return how much of the GPU time computes while all workers are there and prompts are left to lease."""
    return _unless_short("{:.2%} between start and tail", result.steady_utilisation)


def _unless_short(text: str, number: float) -> str:
    """Return the text with its number, or why there is none."""
    return "too short for a steady state" if math.isnan(number) else text.format(number)


def result_lines(result: SimulationResult) -> list[str]:
    """Return one run as lines."""
    settings = result.settings
    paid = settings.gpus * result.makespan_seconds
    load, latency, moved = result.coordinator, result.latency, result.bytes_moved
    head = (
        f"{result.prompts:,} prompts ({result.strategy}, spread {result.spread}) on {settings.gpus:,} GPUs, "
        f"{settings.num_cells} cell{'s' * (settings.num_cells > 1)}: {duration(result.makespan_seconds)}"
    )
    speed = (
        f"throughput: {result.prompts_per_second:.4g} prompts/s, {result.images_per_second:.4g} images/s; "
        f"{_unless_short('in steady state {:.4g}', result.steady_prompts_per_second)}; "
        f"at most {result.ideal_prompts_per_second:.4g} with full micro-batches and no wait"
    )
    use = (
        f"utilisation: {result.utilisation:.2%} of all GPU time computes, {result.goodput_utilisation:.2%} "
        f"to some use; {_between_start_and_tail(result)}"
    )
    lines = [head, speed, use, "", "GPU time"]
    shares = [
        (f"  {reason}", f"{abs(seconds) / paid:.3%}", duration(abs(seconds)))
        for reason, seconds in result.seconds.items()
    ]
    lines += table_lines(("", "", ""), shares)
    lines += [
        "",
        (
            f"latency of a prompt: {latency.p50:.3g} s half of them, {latency.p95:.3g} s 95 %, "
            f"{latency.most:.3g} s the slowest"
        ),
        (
            f"coordinators: busy {load.mean:.1%} of the time, the busiest {load.most:.1%}; an answer waits "
            f"{1e3 * load.wait_mean:.2g} ms for them on average, 95 % of all at most "
            f"{1e3 * load.wait_p95:.2g} ms"
        ),
        (
            f"micro-batches: {result.batches:,} of {result.rows_per_batch:.2f} trajectories (at most "
            f"{_rows_text(settings.rows)})"
        ),
        (
            f"moved: {result.moved:,} of {result.survivors:,} survivors; {result.replays:,} parents rebuilt "
            "from bits"
        ),
        (
            f"bytes: {bytes_text(moved.bits_reported)} bits reported, {bytes_text(moved.bits_sent)} bits for "
            f"replays, {bytes_text(moved.features)} features, {bytes_text(moved.images)} images"
        ),
    ]
    if result.workers_lost:
        lines.append(f"workers lost: {result.workers_lost}; prompts given up: {result.failed}")
    if result.writer_load:
        lines.append(f"writer: busy {result.writer_load:.1%} of the time")
    if settings.selections == "cheap":
        lines.append("selections: random ancestors; simulation.selections=real runs the search's")
    return lines


def _rows_text(rows: int | tuple[int, ...]) -> str:
    return str(rows) if isinstance(rows, int) else f"{', '.join(map(str, rows))} by segment"


_COLUMNS = ("", "prompts/s", "utilisation", "goodput", "steady", "p50 s", "p95 s", "lost GPU s", "replays")


def comparison_lines(results: Mapping[str, SimulationResult]) -> list[str]:
    """Return several runs as one table."""
    rows = [
        (
            name,
            f"{result.prompts_per_second:.4g}",
            f"{result.utilisation:.2%}",
            f"{result.goodput_utilisation:.2%}",
            f"{result.steady_utilisation:.2%}",
            f"{result.latency.p50:.3g}",
            f"{result.latency.p95:.3g}",
            f"{abs(result.seconds['lost']):.4g}",
            f"{result.replays}",
        )
        for name, result in results.items()
    ]
    return table_lines(_COLUMNS, rows)


_COLOURS = {
    "useful": "#4c78a8",
    "replay": "#72b7b2",
    "lost": "#e45756",
    "starting": "#d8d8d8",
    "restarting": "#9d755d",
    "waiting for a decision": "#f58518",
    "no prompts": "#eeca3b",
    "waiting for other shards": "#b279a2",
    "tail of the run": "#bab0ac",
}


def require_matplotlib() -> None:
    """Say at once what a plot needs.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            "--plot: needs matplotlib, which is not installed; `pip install matplotlib`, or leave --plot out"
        )


def draw(result: SimulationResult, path: Path) -> None:
    """Draw the share of each reason over the run, and the sums of those that are no computing."""
    require_matplotlib()
    from matplotlib.figure import Figure

    settings = result.settings
    unit, unit_name = (60.0, "minutes") if result.makespan_seconds > 300 else (1.0, "seconds")
    length = len(next(iter(result.timeline.values())))
    edges = [index * result.bin_seconds / unit for index in range(length + 1)]
    # The last bin is cut short by the end of the run.
    edges[-1] = result.makespan_seconds / unit
    widths = [(after - before) * unit for before, after in itertools.pairwise(edges)]
    shares = {
        reason: [
            100 * seconds / (settings.gpus * width) if width > 0 else 0.0
            for seconds, width in zip(bins, widths, strict=True)
        ]
        for reason, bins in result.timeline.items()
    }
    figure = Figure(figsize=(9, 6), layout="constrained")
    over_time, sums = figure.subplots(2, 1, height_ratios=(2, 1))
    over_time.stackplot(
        edges,
        [[*values, values[-1]] for values in shares.values()],
        labels=list(shares),
        colors=[_COLOURS[reason] for reason in shares],
        step="post",
    )
    over_time.set(xlim=(0, edges[-1]), ylim=(0, 100), xlabel=unit_name, ylabel="% of GPU time")
    over_time.set_title(
        f"{result.prompts:,} prompts on {settings.gpus:,} GPUs ({result.strategy}): "
        f"{result.utilisation:.1%} computes, {_between_start_and_tail(result)}"
    )
    over_time.legend(loc="lower center", ncols=3, fontsize="small")
    idle = {reason: value for reason, value in result.seconds.items() if reason != "useful"}
    paid = settings.gpus * result.makespan_seconds
    names = list(idle)[::-1]
    values = [100 * abs(idle[name]) / paid for name in names]
    bars = sums.barh(names, values, color=[_COLOURS[name] for name in names])
    sums.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, fontsize="small")
    sums.set(xlabel="% of all GPU time")
    sums.margins(x=0.12)
    figure.savefig(path, dpi=120)
