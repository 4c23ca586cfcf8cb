"""Writing one tensor at a time is what safetensors reads; folders of shards are read as they are found."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.weight_files import TensorPlan, read_weights, write_safetensors, write_shards
from ttsvar_ray.models.weight_source import WeightSource, fingerprint_path, parse_root

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def plan(tensor: torch.Tensor) -> TensorPlan:
    return TensorPlan(dtype=tensor.dtype, shape=tuple(tensor.shape), make=partial(tensor.clone))


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {str(dtype): (torch.randn(3, 5) * 3).to(dtype) for dtype in DTYPES}
    return made | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5), "turned": torch.randn(4, 6).T}


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    wanted = tensors()
    write_safetensors(tmp_path / "x.safetensors", {name: plan(tensor) for name, tensor in wanted.items()})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_plan_that_does_not_keep_its_word_is_noticed(tmp_path: Path) -> None:
    lie = TensorPlan(dtype=torch.float32, shape=(2,), make=lambda: torch.zeros(3))
    with pytest.raises(CheckpointError, match="planned as"):
        write_safetensors(tmp_path / "x.safetensors", {"a": lie})
    assert not (tmp_path / "x.safetensors").exists()


def test_shards_hold_everything_and_none_is_too_large(tmp_path: Path) -> None:
    wanted = {f"layer.{index}": torch.full((index + 1, 10), float(index)) for index in range(8)}
    write_shards(tmp_path / "w", {name: plan(tensor) for name, tensor in wanted.items()}, largest=400)
    files = sorted((tmp_path / "w").glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 400 for file in files)
    found = read_weights(tmp_path / "w")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert found.keys() == wanted.keys()


def test_shards_in_torch_files_and_weights_that_are_there_twice(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.ones(1)}, tmp_path / "pytorch_model-2.bin")
    placed = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    assert read_weights(tmp_path).keys() == {"a", "b"}
    save_file({"c": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    index = json.dumps({"weight_map": {"c": "model-1.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert read_weights(tmp_path).keys() == {"c"}, "safetensors where a folder holds both"


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    folder = tmp_path / "w"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="expected plain file names"):
        read_weights(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        read_weights(folder)


def test_the_fingerprint_tells_weights_apart_and_forgets_where_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_bytes(bytes(10_000_000))
    same = WeightSource(tmp_path / "a").fingerprint()
    assert same == WeightSource(parse_root(str(tmp_path / "b"))).fingerprint()
    with (tmp_path / "b" / "w.bin").open("r+b") as file:
        file.seek(10_000_000 - 1)
        file.write(b"x")
    assert same != fingerprint_path(tmp_path / "b")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "note").write_text("of a tool")
    assert same == fingerprint_path(tmp_path / "a")
    with pytest.raises(CheckpointError, match="no such file"):
        WeightSource(tmp_path, "absent").fingerprint()
