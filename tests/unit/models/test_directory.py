from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.shapes.assemble import save_infinity
from tests.support.tiny_infinity import TEXT_LENGTH, text_parts, tiny_config, tiny_model
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.infinity.directory import TOKENIZER_KEYS, transformer_weights
from ttsvar_ray.models.registry import describe_model, load_model
from ttsvar_ray.models.weight_files import read_weights
from ttsvar_ray.vision.checkpoints import load_strict, on_meta, rename_keys

PLAN = {"batch_schedule": [4, 4, 4, 2, 2, 2, 1, 1], "cluster_scales": [2], "resample_scales": [5]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model()
    encoder, words = text_parts()
    save_infinity(
        path,
        name="tiny",
        transformer=model.transformer,
        tokenizer=model.tokenizer,
        quantizer=model.quantizer,
        text_model=encoder,
        text_tokenizer=words,
        sampling={"guidance": 3.0, "temperature": [2.0] * 8, "top_p": 0.97},
        dtype=torch.float32,
        plan=PLAN,
        reward={"name": "image-reward", "path": "reward"},
        features={"extractor": "pca", "backbone": "reward"},
    )
    return path


def generate(model: object) -> tuple[np.ndarray, ...]:
    state = model.start(model.encode_text(["a red circle and a ring"]), [0, 0])  # type: ignore[attr-defined]
    generator = np.random.default_rng(0)
    for height, width in model.scale_schedule:  # type: ignore[attr-defined]
        state = model.advance(state, generator.random((2, height * width * 8), dtype=np.float32))  # type: ignore[attr-defined]
    return (*model.bits(state), model.decode(state))  # type: ignore[attr-defined]


def test_a_saved_model_generates_the_same_bytes(directory: Path) -> None:
    loaded = load_model(str(directory), device="cpu", dtype="float32")
    assert loaded.name == "tiny"
    for ours, theirs in zip(generate(tiny_model()), generate(loaded), strict=True):
        assert np.array_equal(ours, theirs)


def test_sampling_can_be_overridden(directory: Path) -> None:
    default = generate(load_model(str(directory), device="cpu"))
    other = generate(load_model(str(directory), device="cpu", guidance=1.0, temperature=1.0, top_p=1.0))
    assert not np.array_equal(default[-1], other[-1])
    with pytest.raises(ConfigurationError, match="expected one number or 8"):
        load_model(str(directory), device="cpu", guidance=[1.0, 2.0])


def test_description_needs_no_weights(directory: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((directory / "config.json").read_bytes())
    description = describe_model(str(bare))
    assert description.name == "tiny"
    assert description.num_scales == 8
    assert description.bits_per_token == 8
    assert (description.image_height, description.image_width) == (24, 24)
    assert description.plan == PLAN
    assert (description.reward_name, description.reward_path) == ("image-reward", bare / "reward")
    assert (description.extractor, description.backbone_path) == ("pca", bare / "reward")
    assert description.sampling.temperature == (2.0,) * 8


def test_half_precision_on_disk_loads_in_float32(directory: Path, tmp_path: Path) -> None:
    model = tiny_model()
    encoder, words = text_parts()
    save_infinity(
        tmp_path / "half",
        name="half",
        transformer=model.transformer,
        tokenizer=model.tokenizer,
        quantizer=model.quantizer,
        text_model=encoder,
        text_tokenizer=words,
        sampling={"guidance": 3.0, "temperature": 0.8, "top_p": 0.97},
        dtype=torch.bfloat16,
    )
    assert next(encoder.parameters()).dtype == torch.float32, "saving must not change the caller's model"
    loaded = load_model(str(tmp_path / "half"), device="cpu")
    assert {p.dtype for p in loaded.transformer.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    sizes = [(path / "transformer.safetensors").stat().st_size for path in (tmp_path / "half", directory)]
    assert sizes[0] < 0.6 * sizes[1]


def test_every_misfit_is_reported_at_once(directory: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.safetensors"):
        (broken / name).write_bytes((directory / name).read_bytes())
    shutil.copytree(directory / "text_encoder", broken / "text_encoder")
    weights = load_file(directory / "transformer.safetensors")
    del weights["pos_start"]
    weights["head.bias"] = torch.zeros(3)
    weights["surprise"] = torch.zeros(1)
    save_file(weights, broken / "transformer.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(str(broken), device="cpu")
    message = str(caught.value)
    assert "1 missing: pos_start" in message
    assert "1 unexpected: surprise" in message
    assert "head.bias (expected (16,), got (3,))" in message


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"family": "other"}, "unknown model family 'other'"),
        ({"format_version": 9}, "format_version: expected 1, got 9"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"sampling": None}, "missing key 'sampling'"),
    ],
)
def test_unusable_configurations_are_named(
    directory: Path, tmp_path: Path, edit: dict[str, object], expected: str
) -> None:
    values = json.loads((directory / "config.json").read_text()) | edit
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(CheckpointError, match=expected):
        describe_model(str(tmp_path))


def test_absent_directories_and_devices_are_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        describe_model(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        describe_model(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"model\.device"):
        load_model(str(directory), device="toaster")
    with pytest.raises(ConfigurationError, match=r"model\.dtype"):
        load_model(str(directory), device="cpu", dtype="int4")


def test_published_wrappings_are_undone(tmp_path: Path) -> None:
    model = tiny_model()
    flat = {k: v.contiguous() for k, v in model.transformer.state_dict().items()}
    torch.save({"trainer": {"gpt_fsdp": {**flat, "lvl_1L": torch.zeros(1)}}, "epoch": 3}, tmp_path / "a.pth")
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(flat)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: flat[name].clone() for name in part}, shards / file)
    placed = {name: file for file, part in parts.items() for name in part}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    for source in (tmp_path / "a.pth", shards):
        weights = transformer_weights(read_weights(source), tiny_config(), source=str(source))
        assert weights.keys() == flat.keys()
        load_strict(model.transformer, weights, source=str(source), assign=True)
    (shards / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards missing"):
        read_weights(shards)


def test_text_table_is_cut_to_the_length_in_use() -> None:
    weights = {"cfg_uncond": torch.arange(40.0).reshape(20, 2)}
    kept = transformer_weights(weights, tiny_config(), source="here")["cfg_uncond"]
    assert torch.equal(kept, weights["cfg_uncond"][:TEXT_LENGTH])


def test_wrapped_tokenizer_names_are_unwrapped(tmp_path: Path) -> None:
    wrapped = {
        "encoder.conv_in.weight": "encoder.conv_in.conv.weight",
        "encoder.down.0.block.1.norm1.bias": "encoder.down.0.block.1.norm1.norm.bias",
        "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.conv.weight",
        "encoder.down.0.downsample.conv.weight": "encoder.down.0.downsample.conv.conv.weight",
        "decoder.up.2.upsample.conv.bias": "decoder.up.2.upsample.conv.conv.bias",
        "decoder.mid.block_1.conv2.weight": "decoder.mid.block_1.conv2.conv.weight",
        "decoder.norm_out.weight": "decoder.norm_out.norm.weight",
    }
    tensor = torch.zeros(1)
    published = {**dict.fromkeys(wrapped.values(), tensor), "quantizer.lfq.mask": tensor}
    torch.save({"vae": published, "ema": {}}, tmp_path / "vae.pth")
    renamed = rename_keys(read_weights(tmp_path / "vae.pth"), TOKENIZER_KEYS, source="vae.pth")
    assert sorted(renamed) == sorted(wrapped)
    again = rename_keys(renamed, TOKENIZER_KEYS, source="vae.pth")
    assert again.keys() == renamed.keys(), "unwrapped names stay as they are"


def test_unreadable_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"not weights")
    (tmp_path / "junk.pth").write_bytes(b"not weights")
    for name in ("junk.safetensors", "junk.pth", "absent.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)


class Operations(TorchDispatchMode):
    """Notes the names of what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_no_weights_are_drawn_for_a_module_that_has_none_yet() -> None:
    with Operations() as seen, on_meta():
        table = nn.Embedding(3, 4)
        nn.init.trunc_normal_(nn.Linear(3, 4).weight)
    assert table.weight.is_meta and table.weight.requires_grad
    # Either would import torch's compiler.
    assert "empty" in seen.names and not {"normal_", "erfinv_"} & seen.names
