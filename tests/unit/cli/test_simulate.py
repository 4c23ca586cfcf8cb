"""`ttsvar-ray simulate` end to end, small."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.simulate import progress_lines
from ttsvar_ray.coordination.workload import SegmentLoad, Workload
from ttsvar_ray.job.workload_file import write_workload


def invoke(*settings: str, output: tuple[str, ...] = ()) -> Any:
    """Simulate 40 prompts of Infinity-2B with these settings."""
    arguments = ["--gpus", "4", "--prompts", "40", *output]
    for setting in ("model.name=infinity-2b", "simulation.start_seconds=0", *settings):
        arguments += ["--set", setting]
    return CliRunner().invoke(app, ["simulate", *arguments])


def test_a_run_on_a_known_device(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = invoke(
        "simulation.failures_per_gpu_hour=60", "simulation.noise=0.1", output=("--json", str(out))
    )
    assert result.exit_code == 0, result.output
    for words in (
        "40 prompts (tts-var",
        "utilisation: ",
        "tail of the run",
        "latency of a prompt",
        "costs: ",
    ):
        assert words in result.output
    values = json.loads(out.read_text())
    assert values["prompts"] == 40
    assert values["settings"]["noise"] == 0.1
    assert values["settings"]["memory_bytes"] > 50e9
    assert values["workload_source"] == "counted, rates of h200"
    assert "variants" not in values


def test_variants_are_compared(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = invoke("simulation.compare=true", output=("--json", str(out)))
    assert result.exit_code == 0, result.output
    variants = json.loads(out.read_text())["variants"]
    assert {"as given", "no noise", "5 % stragglers, twice as slow", "spread 1"} <= set(variants)
    assert variants["no noise"]["settings"]["noise"] == 0
    assert "spread 4 " in result.output


def test_a_measured_workload(tmp_path: Path) -> None:
    loads = tuple(SegmentLoad(tokens=9, batch_seconds=0.1, row_seconds=0.1) for _ in range(5))
    write_workload(tmp_path / "load.json", Workload(segments=loads, source="measured somewhere"))
    profile = f"simulation.profile={tmp_path / 'load.json'}"
    result = invoke(profile)
    assert result.exit_code == 0, result.output
    assert "costs: measured somewhere" in result.output
    result = invoke(profile, "strategy.name=raw")
    assert result.exit_code == 2
    assert "expected loads of the plan's 1 segments, got 5" in result.output


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="draws with matplotlib")
def test_the_plot_is_an_image(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "plot.png"
    result = invoke(output=("--plot", str(path)))
    assert result.exit_code == 0, result.output
    with Image.open(path) as image:
        assert image.width > 500


def test_without_matplotlib_the_plot_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def absent(name: str, *rest: Any) -> Any:
        return None if name == "matplotlib" else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    result = invoke(output=("--plot", str(tmp_path / "plot.png")))
    assert result.exit_code == 2
    assert "needs matplotlib" in result.output
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("simulation.profile=h2000",), "expected one of"),
        (("simulation.selections=some",), "expected 'cheap' or 'real', got 'some'"),
        (("simulation.writer_gb_per_second=0",), "expected more than 0"),
        (("simulation.gpus=0",), "simulation.gpus: expected at least 1, got 0"),
        (("model.name=infinity-8b", "simulation.profile=rtx4090"), "leave nothing to trajectories"),
    ],
)
def test_what_cannot_be_simulated_is_refused(settings: tuple[str, ...], message: str) -> None:
    result = invoke(*settings)
    assert result.exit_code == 2
    assert message in result.output


def test_progress_is_told_now_and_then() -> None:
    clock = itertools.count()
    lines: list[str] = []
    tell = progress_lines(1000, now=lambda: float(next(clock)), say=lines.append)
    for finished in range(1, 1001):
        tell(finished)
    # A second passes at each look, a look is taken every 64 prompts, and the first word comes after five.
    assert len(lines) == 1
    assert lines[0].startswith("320 of 1,000 prompts simulated, ")
