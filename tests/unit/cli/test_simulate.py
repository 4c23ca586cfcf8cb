"""`ttsvar-ray simulate` end to end, small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ttsvar_ray.cli.simulate as simulate_module
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.simulate import EnoughError, Follower, part_of
from ttsvar_ray.coordination.settings import SegmentLoad, Workload
from ttsvar_ray.job.workload import write_workload


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


def test_a_run_whose_prompts_are_all_leased_at_once_has_no_steady_state(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    own = ["--set", "reward.name=ttsvar_ray.shapes.checker:ExactChecker"]
    result = CliRunner().invoke(
        app,
        [
            "simulate",
            "--gpus",
            "4",
            "--prompts",
            "2",
            "--plot",
            str(plot),
            "--set",
            "model.name=infinity-2b",
            *own,
        ],
    )
    assert result.exit_code == 0, result.output
    assert plot.is_file()
    assert "too short for a steady state" in result.output
    assert "times are without ttsvar_ray.shapes.checker:ExactChecker, which nobody" in result.output
    assert "nan" not in result.output


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


def test_progress_is_told_now_and_then_and_ends_in_time() -> None:
    clock, lines = [0.0], list[str]()
    follower = Follower(100_000, wall_limit=15.0, now=lambda: clock[0], say=lines.append)

    def play(until: int) -> None:
        for finished in range(1, until):
            clock[0] = finished / 100
            # A slow start, then two prompts a second.
            follower(finished, 300 + finished / 2)

    with pytest.raises(EnoughError):
        play(100_001)
    assert lines[0].startswith("320 prompts simulated, 10.00 s for 1,000")
    assert len(lines) == 2
    assert follower.known("cut short") == [
        "cut short after 1,536 prompts, 17 min 48 s of simulated time",
        "2 prompts/s in the later half: 100,000 prompts take about 13 h 58 min",
    ]
    assert Follower(10, wall_limit=None).known("stopped") == ["stopped before anything was steady"]


@pytest.mark.parametrize(
    ("prompts", "gpus", "part"), [(2999, 8, 2999), (200_000, 8, 1500), (10**6, 512, 12_288)]
)
def test_of_a_long_run_a_part_is_simulated(prompts: int, gpus: int, part: int) -> None:
    assert part_of(prompts, gpus=gpus) == part


def test_a_long_run_is_extrapolated_as_the_whole_would_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(simulate_module, "STEADY_PROMPTS", 60)
    monkeypatch.setattr(simulate_module, "STEADY_PROMPTS_PER_GPU", 60)
    given = ["simulate", "--gpus", "2", "--set", "model.name=infinity-2b", "--prompts", "480"]

    def hours(*more: str) -> float:
        result = CliRunner().invoke(app, [*given, *more])
        assert result.exit_code == 0, result.output
        values = {"h": 3600, "min": 60, "s": 1}
        (line,) = (line for line in result.stdout.splitlines() if line.startswith("480 prompts"))
        words = line.rpartition(": ")[2].removeprefix("about ").split()
        return sum(int(number) * values[unit] for number, unit in zip(words[::2], words[1::2], strict=True))

    out = tmp_path / "out.json"
    assert hours("--json", str(out)) == pytest.approx(hours("--whole"), rel=0.1)
    values = json.loads(out.read_text())
    assert (values["prompts"], values["extrapolated"]["prompts"]) == (120, 480)
    assert values["extrapolated"]["seconds"] > values["makespan_seconds"]


def test_ctrl_c_prints_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_given: object, progress: Follower, **_named: object) -> None:
        for finished in range(64, 641, 64):
            progress(finished, float(finished))
        raise KeyboardInterrupt

    monkeypatch.setattr("ttsvar_ray.simulation.run.simulate", interrupted)
    result = invoke()
    assert result.exit_code == 130
    assert "stopped after 640 prompts" in result.stdout
    assert "1 prompts/s in the later half: 40 prompts take about" in result.stdout
