"""`fetch` without a hub: single files that break, are resumed and checked; what is left to the user."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ttsvar_ray.cli import fetch
from ttsvar_ray.cli.app import app
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.evaluate.benchmark_scorers import benchmark_specs, published_weights

CONTENT = bytes(range(256)) * 40


class OneFile(http.server.BaseHTTPRequestHandler):
    """Sends CONTENT; a first request without a range breaks in the middle."""

    ranges: list[str | None]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:] if asked else CONTENT[:1000])


@pytest.fixture
def url() -> Iterator[str]:
    OneFile.ranges = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneFile)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/prompts.jsonl"
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def published(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes = CONTENT) -> None:
    prompts = fetch.PromptSet(url=url, sha256=hashlib.sha256(content).hexdigest(), about="ours")
    monkeypatch.setitem(fetch.PROMPT_SETS, "geneval", prompts)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["fetch", *arguments])
    return done.exit_code, done.output


def test_a_prompt_set_is_resumed_checked_and_left_alone_when_it_is_there(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    published(monkeypatch, url)
    file = tmp_path / "prompts" / "geneval.jsonl"
    assert run("prompts", "geneval", "--dry-run")[1].startswith("missing")
    assert not file.parent.exists() and OneFile.ranges == []
    code, text = run("prompts", "geneval")
    assert code == 2 and "the connection broke; the same command goes on" in text
    assert not file.exists()
    assert run("prompts", "geneval")[0] == 0
    assert file.read_bytes() == CONTENT
    assert OneFile.ranges == [None, "bytes=1000-"]
    assert run("prompts", "geneval")[1].startswith("there")
    file.write_bytes(b"mine")
    code, text = run("prompts", "geneval")
    assert code == 2 and "name another file by --to" in text
    assert file.read_bytes() == b"mine"


def test_what_was_not_published_is_not_kept(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published(monkeypatch, url, content=b"something else")
    target = tmp_path / "p.jsonl"
    (tmp_path / "p.jsonl.part").write_bytes(CONTENT[:10])
    code, text = run("prompts", "geneval", "--to", str(target))
    assert code == 2 and "is not what was published" in text
    assert list(tmp_path.iterdir()) == []


def test_a_detector_with_another_checksum_than_its_name_says_is_not_kept(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    urlopen = urllib.request.urlopen

    def here(request: urllib.request.Request, *, timeout: float) -> Any:
        asked.append(request.full_url)
        whole = urllib.request.Request(url, headers={"Range": "bytes=0-"})  # noqa: S310
        return urlopen(whole, timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", here)
    sweep, detector = tmp_path / "sweep.yaml", tmp_path / "detector"
    sweep.write_text(
        f"""{{name: mine, control: a, evaluators: ["t2i-compbench-objects=p.txt:{detector}"],
        variants: {{a: {{strategy: {{name: raw}}}}, b: {{strategy: {{name: best-of-n, n: 2}}}}}}}}"""
    )
    code, text = run(str(sweep))
    assert code == 2 and "what came is not what was published (sha256 743b7d99)" in text
    assert list(detector.iterdir()) == []
    assert [one.rpartition("/")[0] for one in asked] == [
        "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
    ]


def test_without_a_network_it_ends_with_2_and_the_command_for_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published(monkeypatch, "http://127.0.0.1:9/prompts.jsonl")
    code, text = run("prompts", "geneval", "--to", str(tmp_path / "p.jsonl"))
    assert code == 2
    assert "cannot be fetched" in text and "Where there is a network, run: curl -L -o" in text
    code, text = run("prompts", "coco")
    assert code == 2 and "expected one of geneval, got coco" in text


def test_a_file_under_another_licence_is_left_to_the_user(tmp_path: Path) -> None:
    weights = tmp_path / "aesthetic"
    settings = ("--model", "shapes", "--set", "reward.name=aesthetic-v2.5", "--set", f"reward.path={weights}")
    code, text = run(*settings, "--dry-run")
    assert code == 0
    assert "AGPL-3.0: this command leaves it to you" in text
    assert f"curl -L --create-dirs -o {weights}/aesthetic_predictor_v2_5.pth" in text
    assert "missing   hf:google/siglip-so400m-patch14-384" in text
    assert not weights.exists()


def test_where_weights_go_must_be_said(tmp_path: Path) -> None:
    config = load_config(None, ["reward.name=hps-v2.1"], needs_files=False)
    with pytest.raises(ConfigurationError, match=r"reward.path: expected where HPS_v2.1_compressed.pt go"):
        fetch.downloads(config)
    assert fetch.downloads(load_config(None, [], needs_files=False)) == ()


def test_published_weights_without_a_path_go_to_the_cache_of_the_hub(tmp_path: Path) -> None:
    settings = ["model.name=infinity-8b", "strategy.name=best-of-n", f"reward.path={tmp_path}"]
    (of_model, of_text, *_) = fetch.downloads(load_config(None, settings, needs_files=False))
    assert (of_model.source, of_model.folder) == ("FoundationVision/Infinity", None)
    assert of_model.patterns[-1] == "infinity_vae_d56_f8_14_patchify.pth"
    assert (of_text.source, of_text.folder) == ("google/flan-t5-xl", None)


def test_a_folder_with_a_dot_in_its_name_is_a_folder(tmp_path: Path) -> None:
    settings = ["reward.name=hps-v2.1", f"reward.path={tmp_path}/hps-v2.1"]
    found = fetch.downloads(load_config(None, settings, needs_files=False))
    assert {download.folder for download in found} == {tmp_path / "hps-v2.1"}
    settings = ["reward.name=hps-v2.1", f"reward.path={tmp_path}/HPS_v2.1_compressed.pt"]
    with pytest.raises(ConfigurationError, match="what is fetched comes as a folder"):
        fetch.downloads(load_config(None, settings, needs_files=False))


def test_a_job_that_reads_nothing_published_says_so() -> None:
    assert run() == (0, "model shapes: nothing to fetch, all that it reads is here\n")


SWEEPS = sorted((Path(__file__).parents[3] / "jobs" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda file: file.stem)
def test_all_folders_of_weights_that_a_sweep_names_are_filled(sweep: Path) -> None:
    named = set(re.findall(r"weights[-\w./]*", re.sub("#.*", "", sweep.read_text())))
    code, text = run(str(sweep), "--dry-run")
    assert code == 0, text
    filled = {
        line.rpartition("  ->  ")[2] for line in text.splitlines() if line[:7] in ("missing", "yours  ")
    }
    # Nothing there reads features.
    unread = {"weights/dinov2"} if sweep.stem == "resampling_scales" else set()
    assert "weights/mask2former" in named
    assert named - filled == unread
    assert ("prompts/geneval.jsonl" in text) == ("prompts/geneval.jsonl" in sweep.read_text())


def test_a_sweep_that_cannot_be_read_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("variants: {a: {strategy: {nam: raw}}}\nevaluators: [hps-v2.1]\n")
    code, text = run(str(tmp_path / "sweep.yaml"))
    assert code == 2 and "variant 'a': strategy.nam: unknown key; did you mean 'name'?" in text


def test_prompts_of_ones_own_by_a_published_sets_name_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    job = ("--set", "prompts.path=prompts/geneval.jsonl")
    text = run(*job, "--dry-run")[1]
    assert "missing   https://" in text and "nothing to fetch" not in text
    Path("prompts").mkdir()
    Path("prompts/geneval.jsonl").write_text("mine")
    assert run(*job) == (0, "model shapes: nothing to fetch, all that it reads is here\n")


def test_a_benchmarks_weights_go_to_where_compare_looks_for_them() -> None:
    given = "geneval=~/detector:weights/clip"
    places = [place for _, place in published_weights(given)]
    assert places == [Path.home() / "detector", Path("weights/clip")]
    with pytest.raises(ConfigurationError) as refused:
        benchmark_specs(given, set, device="cpu")
    assert all(str(place) in problem for place, problem in zip(places, refused.value.problems, strict=True))
