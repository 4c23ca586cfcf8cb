"""From Python: a job on a cluster and a search in this process give the same images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from ttsvar_ray import generate, load
from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import OutputError

PROMPTS = ["a photo of a ring and a circle", {"prompt": "a photo of three bars", "id": "bars"}]
SETTINGS = {
    "strategy.batch_schedule": [3] * 5 + [2] * 3 + [1] * 5,
    "strategy.cluster_scales": [5],
    "strategy.resample_scales": [8],
    "engine.threads": 1,
    "cluster.workers": 1,
    "output.trace": "bits",
}


def test_a_job_and_this_process_give_the_same_results(ray_cluster: Cluster, tmp_path: Path) -> None:
    options = {"model": "shapes", "device": "cpu", "seed": 4, "keep": "all", "settings": SETTINGS}
    here = generate(PROMPTS, **options)
    written = generate(PROMPTS, **options, output=tmp_path / "out", address=ray_cluster.address)
    again = load(tmp_path / "out")
    assert len(written) == len(again) == 2
    for mine, theirs in zip(here, again, strict=True):
        assert (mine.prompt, mine.prompt_id) == (theirs.prompt, theirs.prompt_id)
        assert [image.encoded for image in mine.images] == [image.encoded for image in theirs.images]
        assert [image.lineage for image in mine.images] == [image.lineage for image in theirs.images]
        assert mine.reward == pytest.approx(theirs.reward, abs=1e-6)
        assert mine.tree is not None
        assert theirs.tree is not None
        assert [level.kept for level in mine.tree.levels] == [level.kept for level in theirs.tree.levels]
        assert [level.labels for level in mine.tree.levels] == [level.labels for level in theirs.tree.levels]
        bits = [level.bits for level in mine.tree.levels]
        assert [len(population) for population in bits] == [3, 2, 0], "those that were selected from"
        assert [level.bits for level in theirs.tree.levels] == bits
    assert [result.prompt for result in again.find("bars")] == ["a photo of three bars"]
    assert [result.prompt_id for result in again.find("a photo of three bars")] == ["bars"]
    assert again.find("none") == []
    assert [result.prompt_id for result in again[:2]] == [again[0].prompt_id, again[-1].prompt_id]
    _score_here_and_there(tmp_path / "out", ray_cluster.address)
    with pytest.raises(IndexError, match="from 0 to 1"):
        again[2]
    with pytest.raises(OutputError, match=r"found no run\.json"):
        load(tmp_path)


def _score_here_and_there(output: Path, address: str) -> None:
    """Side tables are the same bytes whoever makes them."""
    checker = "ttsvar_ray.shapes.checker:ExactChecker"
    command = ["score", str(output), "--reward", checker, "--near-duplicates", "3", "--device", "cpu"]
    contents = []
    for where in ([], ["--workers", "2", "--address", address]):
        done = CliRunner().invoke(app, [*command, *where])
        assert done.exit_code == 0, done.output
        contents.append({file: file.read_bytes() for file in (output / "scores").rglob("*.parquet")})
        shutil.rmtree(output / "scores")
    assert len(contents[0]) == 3
    assert contents[0] == contents[1]
    # And so is what is said of a reward that fails, with the line of whoever wrote it.
    command[3] = "tests.support.doubles:Speechless"
    ends = [
        CliRunner().invoke(app, [*command, *where])
        for where in ([], ["--workers", "2", "--address", address])
    ]
    assert [done.exit_code for done in ends] == [1, 1]
    assert ends[0].stderr == ends[1].stderr
    assert "Speechless: part 0 failed: OutOfWordsError: nothing to say of image 0 [doubles.py, line " in (
        ends[0].stderr
    )
