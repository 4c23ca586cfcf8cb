"""Files as interrupted downloads leave them: every loader names the folder, and none raises what it may."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.published_infinity import TINY, TINY_PATCHIFIED, write_published
from tests.support.recorded import recorded_rewards
from tests.support.tiny_clip import save_clip, save_siglip
from tests.support.var import load_case, save_var
from ttsvar_ray.errors import CheckpointError, TtsVarError, reading_weights
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.models.description import ModelChoice
from ttsvar_ray.models.infinity.presets import PRESETS
from ttsvar_ray.models.registry import load_model, model_path
from ttsvar_ray.rewards.map_reward import load_map_patches
from ttsvar_ray.rewards.registry import REWARDS, build_reward
from ttsvar_ray.vision.published import MAP_PATCHES_FILE

WEIGHT_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin"}
V25_WIDTHS = {0: 1024, 2: 128, 4: 64, 6: 16, 8: 1}


def write_built_in(folder: Path) -> None:
    shutil.copytree(model_path("shapes"), folder, dirs_exist_ok=True)


def write_reward(folder: Path) -> None:
    shutil.copytree(
        model_path("shapes") / "reward",
        folder,
        ignore=shutil.ignore_patterns(MAP_PATCHES_FILE),
        dirs_exist_ok=True,
    )


def write_map_patches(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(model_path("shapes") / "reward" / MAP_PATCHES_FILE, folder)


def write_dinov2(folder: Path) -> None:
    """Write a small DINOv2 as transformers saves it."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes)).save_pretrained(folder)


def write_v25(folder: Path) -> None:
    save_siglip(folder / "siglip")
    width, head = 32, {}
    for index, out in V25_WIDTHS.items():
        head[f"scoring_head.{index}.weight"] = torch.zeros(out, width)
        head[f"scoring_head.{index}.bias"] = torch.zeros(out)
        width = out
    torch.save(head, folder / REWARDS["aesthetic-v2.5"].settings["head"])


def write_hps(folder: Path) -> None:
    shutil.copytree(recorded_rewards() / "hpsv21", folder, dirs_exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(Path(__file__).parents[1] / "data" / "clip_bpe" / name, folder / name)


def write_var(folder: Path) -> None:
    save_var(
        folder,
        model=load_case("own_modulation").model,
        dtype=torch.float32,
        plan={"batch_schedule": [4, 4, 2, 1], "cluster_scales": [1], "resample_scales": [2]},
        reward={"name": "constant"},
    )


def load_published(name: str) -> Callable[[Path], object]:
    return lambda folder: load_model(ModelChoice(name=name, path=str(folder)), device="cpu")


KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a model directory": (write_built_in, lambda folder: load_model(str(folder), device="cpu")),
    "published Infinity": (lambda folder: write_published(folder, TINY), load_published(TINY.name)),
    "published Infinity in shards": (
        lambda folder: write_published(folder, TINY_PATCHIFIED),
        load_published(TINY_PATCHIFIED.name),
    ),
    "a VAR directory": (write_var, lambda folder: load_model(str(folder), device="cpu")),
    "ImageReward": (write_reward, lambda folder: build_reward("image-reward", path=folder)),
    "a reward of feature maps": (
        write_map_patches,
        lambda folder: load_map_patches(folder / MAP_PATCHES_FILE),
    ),
    "HPS": (write_hps, lambda folder: build_reward("hps-v2.1", path=folder)),
    "CLIP score": (save_clip, lambda folder: build_reward("clip-score", path=folder)),
    "aesthetic": (write_v25, lambda folder: build_reward("aesthetic-v2.5", path=folder)),
    "a vision tower": (write_reward, lambda folder: build_extractor("pca", backbone=folder)),
    "DINOv2": (write_dinov2, lambda folder: build_extractor("pool", backbone=folder)),
}


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def fill_with_rubbish(file: Path) -> None:
    file.write_bytes(b"\xff\x00<html>404 Not Found</html>" * 20)


def replace_by_another_json(file: Path) -> None:
    file.write_text("[1, 2]")


def remove(file: Path) -> None:
    file.unlink()


def error_of(load: Callable[[Path], object], folder: Path) -> TtsVarError | None:
    try:
        load(folder)
    except TtsVarError as error:
        return error
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for preset in (TINY, TINY_PATCHIFIED):
        monkeypatch.setitem(PRESETS, preset.name, preset)
    write, load = KINDS[kind]
    write(tmp_path / "whole")
    load(tmp_path / "whole")
    files = [path for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()]
    refused = 0
    for number, file in enumerate(files):
        for damage in (cut, empty, fill_with_rubbish, replace_by_another_json, remove):
            folder = tmp_path / f"{number}-{damage.__name__}"
            shutil.copytree(tmp_path / "whole", folder)
            damage(folder / file.relative_to(tmp_path / "whole"))
            is_needed = (
                file.suffix in WEIGHT_SUFFIXES and "reward" not in file.relative_to(tmp_path / "whole").parts
            )
            error = error_of(load, folder)
            if error is None:
                assert not is_needed, f"{kind}: {file.name}: {damage.__name__} went unseen"
            else:
                refused += 1
                assert str(folder) in str(error), f"{file.name}, {damage.__name__}: {error}"
            shutil.rmtree(folder)
    assert refused > 0


@pytest.mark.parametrize("passes", [MemoryError(), ImportError("no open_clip"), AssertionError("ours")])
def test_what_says_nothing_about_files_passes(passes: Exception) -> None:
    with pytest.raises(type(passes)), reading_weights("somewhere"):
        raise passes


def test_a_device_that_is_full_is_no_damage() -> None:
    with pytest.raises(torch.OutOfMemoryError), reading_weights("somewhere"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_our_own_errors_pass_as_they_are() -> None:
    with pytest.raises(CheckpointError, match="ours"), reading_weights("somewhere"):
        raise CheckpointError("ours")
