"""What people type wrong: one clear message, exit code 2, nothing started, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner, Result

from ttsvar_ray.cli.app import app

INFINITY_2B = {
    "format_version": 1,
    "family": "infinity",
    "name": "infinity-2b",
    "transformer": {
        "depth": 32,
        "embed_dim": 2048,
        "num_heads": 16,
        "block_chunks": 8,
        "bits_per_token": 32,
        "text_channels": 2048,
        "text_max_length": 512,
        "rope_grid": [64, 64],
    },
    "tokenizer": {"codebook_dim": 32, "encoder_multipliers": [1, 2, 4, 4, 4]},
    "scale_schedule": [[side, side] for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)],
    "sampling": {"guidance": 3.0, "temperature": 0.5, "top_p": 0.97},
    "reward": {"name": "constant"},
}

Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(INFINITY_2B))
    # Nothing here comes as far as loading them; that they exist is checked before anything starts.
    for weights in ("transformer.safetensors", "tokenizer.safetensors", "text_encoder"):
        (model / weights).touch()
    (tmp_path / "good.txt").write_text("a cat\na dog\n")

    def start(*given: Any, **named: Any) -> None:
        pytest.fail(f"ray.init({given}, {named}): nothing may be started")

    # Whatever ran before, in this process: no cluster is connected, and none will be.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    return invoke


def generate(cli: Cli, *arguments: str, prompts: str = "good.txt") -> Result:
    return cli(
        "generate",
        "--model",
        "model",
        "--prompts",
        prompts,
        "--output",
        "out",
        "--strategy",
        "best-of-n",
        "--n",
        "2",
        *arguments,
    )


def message_of(result: Result) -> str:
    """Return what follows the lines that say what the job is."""
    return result.stderr[result.stderr.index("ttsvar-ray: ") :]


def assert_refused(result: Result, *messages: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message_of(result).startswith("ttsvar-ray: ")
    assert "Traceback" not in result.stderr
    for message in messages:
        assert message in message_of(result)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        ("garbage.txt", bytes(range(256)) * 20, ["garbage.txt: expected UTF-8 text, got binary data"]),
        ("garbage.jsonl", b"\x7fELF\x02\x01\x01\x00\x00", ["garbage.jsonl: expected UTF-8 text"]),
        ("garbage.parquet", b"PAR1 no", ["garbage.parquet: not a readable Parquet file"]),
        ("empty.txt", b"", ["empty.txt: the prompt file is empty"]),
        ("blank.txt", b"\n\n  \n", ["blank.txt: the prompt file holds no prompt"]),
        ("utf16.txt", "a cat\n".encode("utf-16"), ["utf16.txt: expected UTF-8 text, got UTF-16"]),
        ("column.csv", b"caption,id\na cat,1\n", ["no column 'prompt'", "'caption', 'id'", "prompts.column"]),
        ("key.jsonl", b'{"text": "a cat"}\n', ["no key 'prompt'; keys found: 'text'"]),
        ("broken.jsonl", b"{{{\n}}}\n", ["none of its 2 lines holds a usable prompt; line 1"]),
        ("list.json", b"[]", ["list.json: the prompt file holds no prompt"]),
    ],
)
def test_a_prompt_file_that_cannot_be_used(
    cli: Cli, tmp_path: Path, name: str, content: bytes, messages: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    result = generate(cli, prompts=name)
    assert_refused(result, *messages)
    assert len(message_of(result).splitlines()) == 1
    assert result.stderr.startswith("job       model, best-of-n N=2")


def test_a_prompt_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    assert_refused(
        generate(cli, prompts="absent.txt"), f"absent.txt: no such prompt file (looked from {tmp_path})"
    )


def test_all_bad_settings_are_told_at_once(cli: Cli) -> None:
    result = cli("generate", "--n", "0", "--strategy", "ttsvar", "--set", "strategy.lamda=2", "--seed", "3")
    assert_refused(
        result,
        "5 problems:",
        "strategy.n: expected at least 1, got 0",
        "did you mean 'tts-var'?",
        "strategy.lamda: unknown key; did you mean 'lambda'?",
        "prompts.path: not given; add --prompts FILE",
        "output.path: not given; add --output DIR",
    )


def test_a_job_file_that_is_not_there(cli: Cli) -> None:
    assert_refused(cli("generate", "absent.yaml"), "absent.yaml: no such job file")


def test_a_plan_that_does_not_compile(cli: Cli) -> None:
    result = generate(
        cli, "--strategy", "tts-var", "--set", "strategy.batch_schedule=[8,9,6,6,6,4,2,2,2,1,1,1,1]"
    )
    assert_refused(result, "strategy.batch_schedule[1]")


def test_a_model_that_is_not_there(cli: Cli) -> None:
    assert_refused(generate(cli, "--model", "absent"), "absent")


def test_a_reward_that_does_not_exist(cli: Cli) -> None:
    assert_refused(
        generate(cli, "--set", "reward.name=beauty"),
        "reward.name: expected auto, ensemble or one of",
        "got 'beauty'",
    )


def test_an_output_folder_that_is_somebody_elses(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    result = generate(cli, "--output", "mine")
    assert_refused(result, "mine: expected a new or empty folder", "thesis.tex")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_an_address_where_no_cluster_answers(cli: Cli) -> None:
    for address in ("ray://127.0.0.1:9", "127.0.0.1:9"):
        result = generate(cli, "--address", address)
        assert result.exit_code == 2
        assert f"cluster.address: no Ray cluster answers at {address!r}" in result.stderr


def test_debug_shows_the_traceback(cli: Cli) -> None:
    result = generate(cli, "--debug", prompts="absent.txt")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "InputError" in result.stderr


def test_a_folder_that_is_no_recording(cli: Cli, tmp_path: Path) -> None:
    result = cli("verify", "infinity", str(tmp_path))
    assert_refused(result, "expected a folder of recorded tensors")


def test_a_sheet_of_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("sheet", str(tmp_path))
    assert_refused(result, "expected a run with images")


def test_the_plan_of_infinity_2b(cli: Cli) -> None:
    result = cli("plan", "--model", "model", "--n", "2", "--set", "model.device=cuda")
    assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["2"][1:6] == ["4x4", "16", "16", "cluster", "12"]
    assert rows["9"][1:6] == ["32x32", "1024", "4", "resample", "2"]
    assert rows["12"][1:6] == ["64x64", "4096", "2", "-", "2"]
    shares = [float(rows[str(scale)][9].rstrip("%")) for scale in range(13)]
    assert sum(shares) == pytest.approx(100, abs=0.7)
    # One trajectory holds 5.5 GB of keys and values at the end in bfloat16, guidance included.
    assert rows["12"][10:] == ["11", "GB"]
    assert "per prompt: 42 images decoded" in result.stdout
    assert "transformer 297" in result.stdout
    assert "KV cache of one prompt at its peak: 6.74 GB" in result.stdout


def test_what_a_costly_potential_costs_is_said(cli: Cli) -> None:
    result = cli("plan", "--model", "model", "--set", "strategy.potential=sum")
    assert "resample at 6 and 9: potential sum" in result.stdout
    assert "selections need rewards of other scales than their own" in result.stdout
    assert "need rewards" not in cli("plan", "--model", "model").stdout


def test_the_module_gives_its_exit_code_and_imports_no_ray_for_help(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ttsvar_ray", "generate", "--prompts", str(tmp_path / "no.txt")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode == 2
    assert (
        refused.stderr
        == "ttsvar-ray: output.path: not given; add --output DIR, or output.path in the job file\n"
    )
    code = (
        "import sys; from typer.testing import CliRunner; from ttsvar_ray.cli.app import app; "
        "result = CliRunner().invoke(app, ['generate', '--help']); assert result.exit_code == 0; "
        "print([name for name in ('ray', 'torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    started = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout == "[]\n"
    assert time.monotonic() - started < 20, "help must not wait for heavy imports"
