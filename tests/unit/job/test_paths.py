"""Relative paths: of the output under `ray job submit`, of weights on workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.values import Shard
from ttsvar_ray.job.weights import resolve_output, with_absolute_inputs


def test_a_submitted_job_does_not_write_into_the_copy_that_ray_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_output("out/x", submitted=False) == str(tmp_path / "out/x")
    assert resolve_output("out/x", submitted=True) == "/home/someone/out/x"
    assert resolve_output("~/x", submitted=False) == "/home/someone/x"
    for submitted in (False, True):
        assert resolve_output("/data/x", submitted=submitted) == "/data/x"
        assert resolve_output("s3://bucket/x", submitted=submitted) == "s3://bucket/x"


def test_a_shard_writes_to_a_folder_of_its_own() -> None:
    shard = Shard(2, 8)
    assert resolve_output("/data/x/", submitted=False, shard=shard) == "/data/x/shard-2-of-8"
    assert resolve_output("s3://bucket/x", submitted=True, shard=shard) == "s3://bucket/x/shard-2-of-8"
    with_query = "s3://bucket/x/?region=eu-west-1&endpoint_override=host:9000"
    assert resolve_output(with_query, submitted=False, shard=shard) == (
        "s3://bucket/x/shard-2-of-8?region=eu-west-1&endpoint_override=host:9000"
    )


def test_weights_are_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = JobConfig.model_validate({"model": {"name": "m"}, "reward": {"path": "r"}})
    absolute = with_absolute_inputs(config)
    assert absolute.model.name == str(tmp_path / "m")
    assert absolute.reward.path == str(tmp_path / "r")
    assert absolute.features.backbone is None
    assert with_absolute_inputs(JobConfig()).model.name == "shapes"
    reward = {"name": "ensemble", "members": {"hps-v2.1": "h", "constant": None}}
    ensemble = with_absolute_inputs(JobConfig.model_validate({"reward": reward}))
    assert ensemble.reward.members == {"hps-v2.1": str(tmp_path / "h"), "constant": None}


def test_published_names_and_repositories_are_not_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = JobConfig.model_validate(
        {"model": {"name": "infinity-2b", "path": "weights", "text_encoder": "hf:google/flan-t5-xl"}}
    )
    model = with_absolute_inputs(config).model
    assert (model.name, model.path) == ("infinity-2b", str(tmp_path / "weights"))
    assert model.text_encoder == "hf:google/flan-t5-xl"
    repository = JobConfig.model_validate({"model": {"name": "hf:someone/small@main"}})
    assert with_absolute_inputs(repository).model.name == "hf:someone/small@main"
