"""Images judged on Ray: the files of one process, also where workers die and the command is stopped."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from tests.support.doubles import doubles
from tests.support.tiny_clip import save_clip
from tests.support.tiny_mask2former import mmdet_weights, save_mmdet, tiny_mask2former
from ttsvar_ray.cli.app import app
from ttsvar_ray.cluster.sharing import share_on_ray
from ttsvar_ray.errors import OutputError, RunFailedError

PROMPTS = 6


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture of each prompt, in GenEval's layout."""
    for number in range(PROMPTS):
        samples = tmp_path / "images" / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        asked = {
            "tag": "single_object",
            "include": [{"class": "dog", "count": 1}],
            "prompt": f"a dog {number}",
        }
        (samples.parent / "metadata.jsonl").write_text(json.dumps(asked))
        (samples / "0000.png").write_bytes(picture(number))
    return tmp_path / "images"


def test_geneval_on_two_workers_is_geneval_in_one_process(
    ray_cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    save_mmdet(tmp_path / "detector", mmdet_weights(tiny_mask2former()))
    save_clip(tmp_path / "clip")
    command = ["evaluate", "geneval", str(folder), "--device", "cpu"]
    command += ["--detector", str(tmp_path / "detector"), "--clip", str(tmp_path / "clip")]

    def run(name: str, *more: str) -> tuple[Any, list[bytes]]:
        files = [tmp_path / f"{name}.json", tmp_path / f"{name}.jsonl"]
        done = CliRunner().invoke(
            app, [*command, "--json", str(files[0]), "--verdicts", str(files[1]), *more]
        )
        return done, [file.read_bytes() for file in files if file.exists()]

    done, here = run("here")
    assert done.exit_code == 0 and len(here) == 2, done.output
    on_ray = ["--address", ray_cluster.address, "--workers"]
    fourth = folder / "00003" / "samples" / "0000.png"
    fourth.write_bytes(b"damaged")
    stopped, kept = run("ray", *on_ray, "1")
    assert stopped.exit_code == 2 and "00003/samples/0000.png: not an image" in stopped.stderr
    assert here[1].startswith(kept[0]), "what is judged before an end is kept, in order"
    fourth.write_bytes(picture(3))
    done, there = run("ray", *on_ray, "2")
    assert done.exit_code == 0, done.output
    assert there == here


def test_objects_on_two_workers_are_those_of_one_process(ray_cluster: Cluster, tmp_path: Path) -> None:
    save_mmdet(tmp_path / "detector", mmdet_weights(tiny_mask2former()))
    # What this detector sees in noise.
    (tmp_path / "new_objects.txt").write_text("scissors - scissors\n")
    (tmp_path / "numeracy_val.txt").write_text("one scissors\ntwo scissors\n")
    (tmp_path / "images").mkdir()
    for number in range(2 * PROMPTS):
        name = ("one scissors", "two scissors", "scissors")[number % 3]
        (tmp_path / "images" / f"{name}_{number:06d}.png").write_bytes(picture(number))
    command = ["evaluate", "t2i-compbench-objects", str(tmp_path / "images"), "--device", "cpu"]
    command += ["--questions", str(tmp_path / "numeracy_val.txt"), "--detector", str(tmp_path / "detector")]

    def run(name: str, *more: str) -> list[bytes]:
        files = [tmp_path / f"{name}.json", tmp_path / f"{name}.jsonl"]
        done = CliRunner().invoke(
            app, [*command, "--json", str(files[0]), "--verdicts", str(files[1]), *more]
        )
        assert done.exit_code == 0, done.output
        return [file.read_bytes() for file in files]

    here = run("here")
    assert here[1].count(b"\n") == 1 + 8, "one of each image that something is asked of"
    assert json.loads(here[0])["scores"][0]["mean"] > 0
    assert run("ray", "--address", ray_cluster.address, "--workers", "2") == here


def shared(
    cluster: Cluster, numbers: Iterator[int], dies: Path | None, **options: Any
) -> Iterator[tuple[int, int]]:
    asked: Mapping[str, Any] = {"workers": 2, "gpus": 0.0, "run_name": "test", **options}
    build = functools.partial(doubles, dies)
    return share_on_ray(numbers, build, name_of=lambda n: f"number {n}", address=cluster.address, **asked)


def test_a_worker_that_dies_is_replaced_and_its_piece_done_again(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    asked: list[int] = []
    done: list[tuple[int, int]] = []

    def numbers() -> Iterator[int]:
        for number in range(8):
            asked.append(number)
            yield number

    for one in shared(ray_cluster, numbers(), tmp_path / "died"):
        done.append(one)
        assert len(asked) <= len(done) + 1, "no more pieces are out than there are workers"
    assert sorted(done) == [(n, 2 * n) for n in range(8)]
    assert (tmp_path / "died").exists()
    with pytest.raises(OutputError, match="no nine here"):
        list(shared(ray_cluster, iter([1, 9]), tmp_path / "died"))
    with pytest.raises(RunFailedError, match="number 3 failed, its worker was lost 4 times"):
        list(shared(ray_cluster, iter([3]), None, workers=1))
