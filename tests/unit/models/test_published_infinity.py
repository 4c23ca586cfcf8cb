"""Published files as they are: by name, in every wrapping, converted, at every size."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.support.published_infinity import (
    TINY,
    TINY_PATCHIFIED,
    TINY_PRESETS,
    write_published,
)
from ttsvar_ray.errors import CheckpointError, ConfigurationError, OutputError
from ttsvar_ray.models.description import ModelChoice
from ttsvar_ray.models.infinity.convert import Companion, convert, refuse_foreign_links, with_files
from ttsvar_ray.models.infinity.directory import TOKENIZER_KEYS, transformer_weights
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.presets import PRESETS, find_preset
from ttsvar_ray.models.infinity.published import describe_preset
from ttsvar_ray.models.infinity.resolutions import ASPECT_RATIOS, SCALES_OF_SIZE
from ttsvar_ray.models.registry import describe_model, load_model, pin_model
from ttsvar_ray.vision.checkpoints import rename_keys


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for preset in TINY_PRESETS.values():
        write_published(folder, preset)
    return folder


@pytest.fixture(autouse=True)
def _known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, preset in TINY_PRESETS.items():
        monkeypatch.setitem(PRESETS, name, preset)


def load(name: str, **settings: object) -> InfinityModel:
    choice = ModelChoice(name=name, **settings)  # type: ignore[arg-type]
    model = load_model(choice, device="cpu", dtype="float32")
    assert isinstance(model, InfinityModel)
    return model


def drawn(model: InfinityModel, text: str = "a red circle", scales: int | None = None) -> list[np.ndarray]:
    """Return the bits of two trajectories."""
    state = model.start(model.encode_text([text]), [0, 0])
    generator = np.random.default_rng(0)
    for height, width in model.scale_schedule[:scales]:
        count = height * width * model.bits_per_token
        state = model.advance(state, generator.random((2, count), dtype=np.float32))
    return list(model.bits(state))


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("preset", [TINY, TINY_PATCHIFIED], ids=lambda preset: preset.name)
def test_a_converted_model_draws_what_the_published_files_draw(
    files: Path, tmp_path: Path, preset: object
) -> None:
    assert preset in (TINY, TINY_PATCHIFIED)
    name = preset.name  # type: ignore[attr-defined]
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    said: list[str] = []
    convert(
        describe_preset(PRESETS[name], path=str(files)),
        tmp_path / "model",
        shard_bytes=400_000,
        report=said.append,
    )
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before
    assert len(list((tmp_path / "model" / "transformer").glob("*.safetensors"))) > 1, "split into shards"
    assert said[0].startswith("transformer: writing ")
    published, converted = load(name, path=str(files)), load(str(tmp_path / "model"))
    assert (published.image_height, published.image_width) == (256, 256)
    bits = drawn(published)
    assert same(bits, drawn(converted))
    assert not same(bits, drawn(published, "two green rings")), "the text must matter for this test to tell"
    summed = torch.linspace(-1, 1, 2 * 16 * 16).reshape(1, 2, 16, 16)
    channels, cells = published.quantizer.codebook_dim, published.quantizer.map_size(-1)
    grid = torch.nn.functional.interpolate(summed, size=cells).repeat(1, channels // 2, 1, 1)
    assert torch.equal(published.decode_float(grid), converted.decode_float(grid))
    assert describe_model(str(tmp_path / "model")).name == name
    text = load_file(next((tmp_path / "model" / "text_encoder").glob("*.safetensors")))
    assert not any(key.startswith(("decoder.", "lm_head")) for key in text)


def test_narrow_blocks_on_disk_are_what_loading_narrow_gives(files: Path, tmp_path: Path) -> None:
    convert(describe_preset(TINY, path=str(files)), tmp_path / "narrow", dtype=torch.bfloat16)
    with safe_open(tmp_path / "narrow" / "transformer.safetensors", framework="pt") as stored:
        dtypes = {name: stored.get_tensor(name).dtype for name in stored.keys()}  # noqa: SIM118
    narrow = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert narrow == {name for name in dtypes if name.startswith("block_chunks.")}
    from_disk = load_model(str(tmp_path / "narrow"), device="cpu", dtype="bfloat16")
    at_load = load_model(ModelChoice(name=TINY.name, path=str(files)), device="cpu", dtype="bfloat16")
    assert isinstance(from_disk, InfinityModel)
    assert isinstance(at_load, InfinityModel)
    ours, theirs = from_disk.transformer.state_dict(), at_load.transformer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert same(drawn(from_disk), drawn(at_load))


def test_bfloat16_stays_near_float32(files: Path) -> None:
    wide = load(TINY.name, path=str(files))
    narrow = load_model(ModelChoice(name=TINY.name, path=str(files)), device="cpu", dtype="bfloat16")
    assert isinstance(narrow, InfinityModel)
    bits = drawn(wide)
    logits: dict[str, list[torch.Tensor]] = {"wide": [], "narrow": []}
    cached = {}
    for name, model in (("wide", wide), ("narrow", narrow)):
        state = model.start(model.encode_text(["a red circle"]), [0, 0])
        for given in bits:

            def choose(values: torch.Tensor, given: np.ndarray = given, name: str = name) -> torch.Tensor:
                logits[name].append(values)
                return torch.from_numpy(given)

            state = model.advance_with(state, choose)
        assert state.cache.layers[0].keys.dtype == model.block_dtype
        cached[name] = state.cache.nbytes
    assert 2 * cached["narrow"] == cached["wide"]
    exact, rounded = (
        torch.cat([x.flatten() for x in logits["wide"]]),
        torch.cat([x.flatten() for x in logits["narrow"]]),
    )
    relative = ((rounded - exact).square().mean().sqrt() / exact.std()).item()
    assert 1e-5 < relative < 0.05


def test_training_checkpoints_and_renamed_files_are_read(files: Path, tmp_path: Path) -> None:
    flat = torch.load(files / "infinity_tiny.pth", weights_only=True)
    torch.save({"epoch": 1, "trainer": {"gpt_fsdp": flat}}, tmp_path / "checkpoint.pth")
    shutil.copy(files / "infinity_vae_tiny.pth", tmp_path / "other.pth")
    description = with_files(
        describe_preset(TINY, path=str(files)),
        transformer=tmp_path / "checkpoint.pth",
        tokenizer=tmp_path / "other.pth",
    )
    convert(description, tmp_path / "model")
    assert same(drawn(load(str(tmp_path / "model"))), drawn(load(TINY.name, path=str(files))))


def test_published_files_need_no_conversion_with_a_config_beside_them(files: Path, tmp_path: Path) -> None:
    convert(describe_preset(TINY, path=str(files)), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["files"] = {"transformer": "infinity_tiny.pth", "tokenizer": "infinity_vae_tiny.pth"}
    config["text"] = {"path": "flan-t5-xl"}
    beside = tmp_path / "beside"
    shutil.copytree(files, beside)
    (beside / "config.json").write_text(json.dumps(config))
    assert same(drawn(load(str(beside))), drawn(load(TINY.name, path=str(files))))
    config["files"]["transformer"] = "../model/transformer.safetensors"
    (beside / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="inside the model directory"):
        describe_model(str(beside))


def test_conversion_never_overwrites_and_leaves_nothing_half_done(files: Path, tmp_path: Path) -> None:
    description = describe_preset(TINY, path=str(files))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="already there"):
        convert(description, tmp_path / "taken")
    with pytest.raises(CheckpointError, match="nothing at"):
        convert(description, tmp_path / "a", reward=Companion(name="image-reward", path=tmp_path / "none"))
    broken = tmp_path / "broken.pth"
    torch.save({"pos_start": torch.zeros(1, 1, 64), "surprise": torch.zeros(1)}, broken)
    with pytest.raises(CheckpointError, match=r"missing: .*1 unexpected: surprise"):
        convert(with_files(description, transformer=broken, tokenizer=None), tmp_path / "a")
    (tmp_path / "b.partial").mkdir()
    with pytest.raises(OutputError, match="interrupted conversion"):
        convert(description, tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "broken.pth", "b.partial"}


def test_rewards_and_features_go_into_the_directory(files: Path, tmp_path: Path) -> None:
    (tmp_path / "ir").mkdir()
    (tmp_path / "ir" / "ImageReward.pt").write_bytes(b"weights")
    (tmp_path / "dino.pth").write_bytes(b"more")
    convert(
        describe_preset(TINY, path=str(files)),
        tmp_path / "model",
        reward=Companion(name="image-reward", path=tmp_path / "ir"),
        extractor=Companion(name="pca", path=tmp_path / "dino.pth"),
    )
    description = describe_model(str(tmp_path / "model"))
    assert description.reward_path is not None
    assert description.backbone_path is not None
    assert (description.reward_path / "ImageReward.pt").read_bytes() == b"weights"
    assert description.backbone_path.read_bytes() == b"more"


def test_everything_that_is_missing_is_said_at_once(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "flan-t5-xl", tmp_path / "flan-t5-xl")
    with pytest.raises(CheckpointError) as caught:
        load(TINY.name, path=str(tmp_path))
    assert "infinity_tiny.pth: no such file" in str(caught.value)
    assert "infinity_vae_tiny.pth: no such file" in str(caught.value)


def test_a_model_that_was_never_released_says_what_it_needs() -> None:
    for use in (load_model, pin_model):
        with pytest.raises(ConfigurationError, match=r"infinity_layer16\.pth and infinity_vae_d32\.pth"):
            use(ModelChoice(name="infinity-layer16"))
    assert describe_model("infinity-layer16").num_scales == 7


@pytest.mark.parametrize("aspect", ASPECT_RATIOS)
def test_every_size_of_a_published_model_can_be_described(aspect: str) -> None:
    for size, scales in SCALES_OF_SIZE.items():
        choice = ModelChoice(name="infinity-8b", resolution=size, aspect_ratio=aspect)
        description = describe_model(choice)
        height, width = description.scale_schedule[-1]
        assert description.num_scales == scales
        assert (description.image_height, description.image_width) == (16 * height, 16 * width)
        assert len(description.sampling.temperature) == scales
        full = describe_model(dataclasses.replace(choice, resolution="1M"))
        assert tuple(description.transformer["rope_grid"]) == full.scale_schedule[-1]


def test_an_aspect_ratio_is_drawn_by_published_and_converted_models(files: Path, tmp_path: Path) -> None:
    convert(describe_preset(TINY_PATCHIFIED, path=str(files)), tmp_path / "model")
    wide = load(TINY_PATCHIFIED.name, path=str(files), aspect_ratio="16:9")
    assert (wide.image_height, wide.image_width) == (192, 336)
    again = load(str(tmp_path / "model"), aspect_ratio="7:4")
    assert same(drawn(wide, scales=5), drawn(again, scales=5))
    square = load(TINY_PATCHIFIED.name, path=str(files))
    state = wide.start(wide.encode_text(["a ring"]), [0])
    assert wide.decode(wide.replay(state, [b[:1] for b in drawn(wide)])).shape == (1, 192, 336, 3)
    assert wide.transformer.rope(4).shape != square.transformer.rope(4).shape


def test_a_model_of_one_size_says_so() -> None:
    for setting in ("resolution", "aspect_ratio"):
        value = "1M" if setting == "resolution" else "1:1"
        with pytest.raises(ConfigurationError, match=f"model.{setting}: model 'shapes' draws"):
            describe_model(ModelChoice(name="shapes", **{setting: value}))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"model\.path: names the files of a published model"):
        describe_model(ModelChoice(name="shapes", path="/weights"))
    with pytest.raises(ConfigurationError, match="did you mean 'infinity-8b'"):
        find_preset("infinity-8")


def test_sampling_follows_the_size() -> None:
    description = describe_model(ModelChoice(name="infinity-2b", resolution="0.06M"))
    assert description.sampling.guidance == (3.0,) * 7
    assert description.sampling.temperature == (0.5,) * 7
    assert describe_model("infinity-8b").sampling.temperature == (1.0,) * 13


def test_a_positive_prompt_changes_what_is_encoded_and_nothing_else(files: Path) -> None:
    plain = load(TINY.name, path=str(files))
    positive = load(TINY.name, path=str(files), positive_prompt=True)
    for text, changes in (("a red woman", True), ("a red circle", False)):
        ours = positive.encode_text([text])[0].text_mask.sum()
        theirs = plain.encode_text([text])[0].text_mask.sum()
        assert bool(ours > theirs) == changes


def test_the_text_table_is_cut_or_goes_on_as_published() -> None:
    config = PRESETS[TINY.name].transformer_config()

    def fitted(table: torch.Tensor, length: int) -> torch.Tensor:
        own = dataclasses.replace(config, text_max_length=length)
        return transformer_weights({"cfg_uncond": table}, own, source="here")["cfg_uncond"]

    table = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(fitted(table, 4), table[:4])
    longer = fitted(table, 512)
    assert longer.shape == (512, 2)
    assert torch.equal(longer[:6], table)
    assert torch.equal(longer, fitted(table, 512)), "not random"
    tail = longer[6:] * 2**0.5
    assert tail.abs().max() <= 2
    assert 0.8 < tail.std() < 1.1, "a normal of deviation 1.2, cut at 2"


def test_a_weight_in_both_forms_is_refused() -> None:
    both = {"decoder.conv_in.weight": torch.zeros(1), "decoder.conv_in.conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="two names of one weight"):
        rename_keys(both, TOKENIZER_KEYS, source="here")


def test_a_projection_of_the_quantizer_is_a_weight_and_not_dropped() -> None:
    weights = {"quantizer.project_in.weight": torch.zeros(1)}
    assert rename_keys(weights, TOKENIZER_KEYS, source="here").keys() == weights.keys()


def test_constant_biases_may_be_left_out(files: Path, tmp_path: Path) -> None:
    published = torch.load(files / "infinity_tiny.pth", weights_only=True)
    weights = {name: value for name, value in published.items() if not name.endswith("zero_k_bias")}
    assert len(weights) < len(published)
    shutil.copytree(files, tmp_path / "bare")
    (tmp_path / "bare" / "infinity_tiny.pth").unlink()
    torch.save(weights, tmp_path / "bare" / "infinity_tiny.pth")
    for dtype in ("float32", "bfloat16"):
        bare = load_model(ModelChoice(name=TINY.name, path=str(tmp_path / "bare")), device="cpu", dtype=dtype)
        full = load_model(ModelChoice(name=TINY.name, path=str(files)), device="cpu", dtype=dtype)
        assert isinstance(bare, InfinityModel)
        assert isinstance(full, InfinityModel)
        assert same(drawn(bare, scales=3), drawn(full, scales=3))


def test_files_that_execute_code_are_refused(tmp_path: Path, files: Path) -> None:
    shutil.copytree(files, tmp_path / "evil")
    (tmp_path / "evil" / "infinity_tiny.pth").unlink()
    torch.save({"pos_start": Path("x")}, tmp_path / "evil" / "infinity_tiny.pth")
    with pytest.raises(CheckpointError, match="not readable as plain tensors"):
        load(TINY.name, path=str(tmp_path / "evil"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_converting_gives_nothing_away_that_a_folder_links_to(files: Path, tmp_path: Path, kind: str) -> None:
    private = tmp_path / "home"
    private.mkdir()
    (private / "id_rsa").write_text("private")
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "own.json").write_text("{}")
    (reward / "alias.json").symlink_to("own.json")
    (reward / "x.json").symlink_to(private if kind == "folder" else private / "id_rsa")
    target = tmp_path / "model"
    with pytest.raises(CheckpointError, match=r"x\.json: expected a file of this folder, got a link to"):
        convert(
            describe_preset(TINY, path=str(files)),
            target,
            reward=Companion(name="image-reward", path=reward),
        )
    assert not [path for path in tmp_path.rglob("*") if path.name == "id_rsa" and path.parent != private]
    assert not target.exists()


def test_links_into_the_cache_of_a_hub_are_of_the_folder(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123/inner", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "beef").write_text("{}")
    (snapshot / "config.json").symlink_to(blobs / "beef")
    refuse_foreign_links(snapshot)
    (snapshot / "tokenizer.json").symlink_to(__file__)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a file of this folder"):
        refuse_foreign_links(snapshot)
