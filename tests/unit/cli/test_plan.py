"""`ttsvar-ray plan` without weights: numbers of the published models, and that nothing else is needed."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
from ttsvar_ray.models.infinity import published

TERA = 1e12


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def report(*arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run("--model", "infinity-2b", "--json", *arguments))
    return content


def test_plans_need_no_torch() -> None:
    program = """
import pathlib, sys
from ttsvar_ray.cli.app import app
app(["plan", "jobs/infinity_2b.yaml", "--profile", "h200"], standalone_mode=False)
assert "torch" not in sys.modules
# Where there are GPUs, torch is asked whether the built-in model would run on one.
pathlib.Path.glob = lambda folder, pattern: iter(())
app(["plan", "--model", "shapes"], standalone_mode=False)
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "141 GB" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "transformer", "decode", "total"),
    [
        (["--strategy", "raw"], 115.6, 9.85, 125.1),
        (["--strategy", "best-of-n", "--n", "8"], 924.9, 78.8, 1001),
        (["--n", "1"], 150.5, 206.8, 359),
        (["--n", "2"], 301.1, 413.6, 718),
        (["--n", "8"], 1204, 1655, 2870),
        (["--n", "1", "--selector-decode", "selector"], 150.5, 22.2, 174),
        (["--n", "2", "--selector-decode", "selector"], 301.1, 44.3, 348),
    ],
)
def test_published_flops(arguments: list[str], transformer: float, decode: float, total: float) -> None:
    flops = report(*arguments)["flops"]
    assert flops["transformer"] / TERA == pytest.approx(transformer, rel=0.02)
    assert flops["decode"] / TERA == pytest.approx(decode, rel=0.02)
    assert flops["total"] / TERA == pytest.approx(total, rel=0.02)


def test_published_cache_and_parameters() -> None:
    content = report("--strategy", "raw")
    megabytes = [scale["kv_bytes_per_trajectory"] / 1e6 for scale in content["scales"]]
    expected = [0.52, 2.6, 11.0, 29.9, 63.4, 139, 273, 483, 785, 1322, 2161, 3369, 5516]
    assert megabytes == pytest.approx(expected, rel=0.02)
    assert content["parameters"]["transformer"] / 1e9 == pytest.approx(2.205, rel=0.02)
    assert content["parameters"]["image tokenizer"] / 1e6 == pytest.approx(110.1, rel=0.02)
    assert content["memory"]["peak_kv"] / 1e9 == pytest.approx(3.4, rel=0.02)
    assert [entry["device_gb"] for entry in content["memory"]["fits"]] == [24, 40, 80, 141]


def test_the_screen() -> None:
    lines = run("--model", "infinity-2b", "--profile", "h200").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == [
        *("scale", "grid", "tokens", "before", "selection", "after", "decode", "score"),
        *("TFLOP", "share", "KV", "cache"),
    ]
    assert any(line.split()[:3] == ["12", "64x64", "4096"] for line in lines)
    text = " ".join(line.strip() for line in lines)
    for words in ("2.205 B", "one decoded image: 1024 x 1024 pixels, 9.85 TFLOP", "141 GB", "rates of h200"):
        assert words in text
    assert lines[-1].endswith("not a measurement")


def test_what_does_not_fit_is_said_with_why() -> None:
    lines = run("--model", "infinity-8b").splitlines()
    assert "24 GB: does not fit: the weights take 23.3 of 24 GB" in lines
    (start,) = (index for index, line in enumerate(lines) if line.startswith("device"))
    assert [line.split()[0] for line in lines[start + 1 : start + 3]] == ["80", "141"]
    helps = " ".join(" ".join(lines).partition("what helps: ")[2].split())
    assert helps.startswith("a smaller --resolution or --n, engine.selector_decode=selector, ")
    assert "--dtype" not in helps, "it is bfloat16"
    done = run("--model", "infinity-8b", "--set", "engine.selector_decode=selector")
    assert "a smaller --resolution or --n, reward.dtype=float16" in " ".join(done.split())


def test_hours_and_gigabytes_of_a_run_are_said_as_its_preflight_says_them() -> None:
    given = ("--model", "infinity-2b", "--n", "2", "--profile", "h200", "--prompts", "200000")
    shown = " ".join(run(*given, "--gpus", "8").split())
    assert "output 200,000 images to make, about 315 GB" in shown
    assert "on 8 x NVIDIA H200 SXM, 141 GB, without the start" in shown
    alone, shared = (
        json.loads(run(*given, "--gpus", gpus, "--json"))["run"][1]["seconds"] for gpus in ("1", "8")
    )
    assert alone == pytest.approx(8 * shared)
    assert "run" not in json.loads(run("--model", "infinity-2b", "--json"))


def test_sizes_and_formats() -> None:
    small = report("--resolution", "0.25M", "--aspect", "16:9", "--dtype", "float32")
    assert [scale["grid"] for scale in small["scales"]][-1] == [24, 42]
    bfloat = report("--resolution", "0.25M", "--aspect", "16:9")
    last = small["scales"][-1]["kv_bytes"], bfloat["scales"][-1]["kv_bytes"]
    assert last[0] == 2 * last[1]


@pytest.mark.parametrize(
    "name", ["infinity-8b", "infinity-8b-512", "infinity-125m", "infinity-20b", "shapes", "var-d16"]
)
def test_other_models_are_planned(name: str) -> None:
    assert f"model {name}," in run("--model", name)


def test_a_reward_without_a_network_costs_nothing_beside_a_model_that_brings_one() -> None:
    assert "selectors 0 FLOP" in run("--model", "shapes", "--set", "reward.name=constant")
    assert "selectors 1.63 GFLOP" in run("--model", "shapes")


def test_an_ablation_of_one_list_says_what_else_it_changes() -> None:
    shown = " ".join(run("--model", "shapes", "--set", "strategy.cluster_scales=[2,5]").split())
    assert "note: naming strategy.cluster_scales leaves the model's own plan: populations 8-8-" in shown
    assert "selections (top-k at 6) are (cluster at 2, 5; resample at 6, 9)" in shown
    assert "note:" not in run("--model", "shapes")
    assert "note:" not in run("--model", "infinity-2b", "--set", "strategy.cluster_scales=[3]")


def test_a_family_whose_costs_nobody_counts_is_planned_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "ENTRY", dataclasses.replace(published.ENTRY, on_meta=None))
    told = " ".join(run("--model", "infinity-2b").split())
    assert "cluster" in told and "TFLOP" not in told
    assert "not counted: FLOPs, memory and seconds, because the family infinity has no `on_meta`" in told


def test_an_unknown_device_is_refused() -> None:
    result = CliRunner().invoke(app, ["plan", "--profile", "abacus"])
    assert result.exit_code == 2
    assert "rtx4090" in result.stderr


def test_an_adaptive_plan_says_what_its_rounds_cost() -> None:
    settings = ["strategy.name=adaptive", "strategy.stop_at=0.4", "strategy.reject_below={6: 0.2}"]
    flags = [part for setting in (*settings, "strategy.max_rounds=3") for part in ("--set", setting)]
    text = " ".join(run(*flags).split())
    assert "up to 3 rounds; all above is of the first one, which costs 1.06 raw images, 0.15 where it" in text
    assert "a prompt costs 1.07 to 3.20 raw images" in text


def test_a_reward_in_verifiers_is_priced_and_is_in_no_workers_memory() -> None:
    given = ["--set", "reward.name=qwen3-vl-2b", "--set", "reward.path=/absent"]
    verifiers = [*given, "--set", "verifiers.replicas=4", "--set", "verifiers.gpus_per_replica=1"]
    shown = " ".join(run("--model", "infinity-2b", "--profile", "h200", *verifiers).split())
    line = re.search(
        r"reward in 4 verifiers of 1 GPUs, 8\.5\d? GB of weights in each .*: (\d+) scores", shown
    )
    assert line is not None and int(line[1]) == 7, shown
    assert re.search(
        r"the verifiers together score [\d.]+ prompts a minute \(counted, rates of h200\)", shown
    )
    inside, beside = report(*given)["memory"], report(*verifiers)["memory"]
    assert inside["weights"]["reward"] > 8e9 and not beside["weights"]["reward"]
    assert report(*given)["flops"] == report(*verifiers)["flops"], "a cost is a cost wherever it is"
