"""Where the workers' time went along a simulated run, drawn with matplotlib."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from ttsvar_ray.cli.simulation_report import between_start_and_tail
from ttsvar_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from ttsvar_ray.simulation.result import SimulationResult

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
        f"{result.utilisation:.1%} computes, {between_start_and_tail(result)}"
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
