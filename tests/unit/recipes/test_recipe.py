"""The training stages at two-digit steps: they learn, stop, go on as if never stopped, and make a model."""

from __future__ import annotations

import multiprocessing.dummy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.shapes import assemble as assemble_module
from recipes.shapes import pool as pool_module
from recipes.shapes import tokenizer_stage, transformer_stage
from recipes.shapes.__main__ import main
from recipes.shapes.architecture import QUANTIZER, TOKENIZER, TRANSFORMER
from recipes.shapes.assemble import assemble, trained_tokenizer
from recipes.shapes.examples import make_examples, open_examples
from recipes.shapes.parallel import Rank
from recipes.shapes.pool import open_pool
from recipes.shapes.progress import load_checkpoint
from recipes.shapes.tokenizer_stage import TokenizerRecipe, quantize, train_tokenizer
from recipes.shapes.transformer_stage import (
    Course,
    TransformerRecipe,
    corrupted_targets,
    train_transformer,
)
from ttsvar_ray.models.infinity.directory import load_infinity
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.registry import describe_model

ONE = Rank(index=0, size=1, device=torch.device("cpu"))
TOKENIZER_RECIPE = TokenizerRecipe(steps=4, batch=8)
TRANSFORMER_RECIPE = TransformerRecipe(
    steps=7, courses=(Course(num_scales=13, batch=3, early_share=1.0, late_share=1.0),)
)


def run_in_sessions(stage: str, folder: Path, steps: int, once: object) -> None:
    """Call a stage with no time at all until its steps are done."""
    for _ in range(steps + 1):
        once(0.0)  # type: ignore[operator]
        state = load_checkpoint(folder / f"{stage}.pt")
        assert state is not None
        if state["step"] == steps:
            return
    pytest.fail("the stage made no progress")


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)  # type: ignore[arg-type]
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)  # type: ignore[attr-defined, index]
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type, call-overload]
    return a == b


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Two narrow blocks in place of six, and a narrow tokenizer: stopping, saving and loading are the same.

    Muon works in bfloat16, which older processors imitate slowly.
    """
    torch.set_num_threads(1)
    narrow = replace(TOKENIZER, base_channels=32)
    with pytest.MonkeyPatch.context() as patch:
        shallow = replace(TRANSFORMER, depth=2, embed_dim=48, num_heads=3, pool_heads=3)
        patch.setattr(transformer_stage, "TRANSFORMER", shallow)
        for module in (tokenizer_stage, assemble_module):
            patch.setattr(module, "TOKENIZER", narrow)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which both stages ran through without a stop."""
    patch = pytest.MonkeyPatch()
    patch.setattr(pool_module, "HELD_OUT", 100)
    # Threads: the examples below are rendered by a process that is started for it, as both are in earnest.
    patch.setattr(pool_module, "get_context", lambda method: multiprocessing.dummy)
    folder = tmp_path_factory.mktemp("recipe")
    pool = open_pool(folder, size=100, processes=1)
    train_tokenizer(ONE, TOKENIZER_RECIPE, pool, folder, None)
    make_examples(folder, seed=0, size=40, processes=1)
    tokenizer, quantizer = trained_tokenizer(folder)
    examples = open_examples(folder, tokenizer, seed=0, size=40)
    train_transformer(ONE, TRANSFORMER_RECIPE, quantizer, examples, folder, None)
    patch.undo()
    return folder


def test_stopping_makes_no_difference(trained: Path, tmp_path: Path) -> None:
    pool = pool_module.Pool(next(trained.glob("scenes-*.npy")))
    pool.size = 100  # the rest is held out, as in the fixture
    run_in_sessions(
        "tokenizer", tmp_path, 4, lambda s: train_tokenizer(ONE, TOKENIZER_RECIPE, pool, tmp_path, s)
    )
    tokenizer, quantizer = trained_tokenizer(trained)
    examples = open_examples(trained, tokenizer, seed=0, size=40)
    run_in_sessions(
        "transformer",
        tmp_path,
        7,
        lambda s: train_transformer(ONE, TRANSFORMER_RECIPE, quantizer, examples, tmp_path, s),
    )
    for stage in ("tokenizer", "transformer"):
        assert same(load_checkpoint(trained / f"{stage}.pt"), load_checkpoint(tmp_path / f"{stage}.pt")), (
            stage
        )


def test_the_assembled_directory_loads_and_draws(trained: Path, tmp_path: Path) -> None:
    assemble(
        trained,
        tmp_path,
        sampling={"guidance": 2.0, "temperature": 1.0, "top_p": 1.0},
        plan={},
        reward=None,
        features=None,
    )
    description = describe_model(str(tmp_path))
    model = load_infinity(
        description, device=torch.device("cpu"), dtype=torch.float32, sampling=description.sampling
    )
    state = model.start(model.encode_text(["a red ring"]), [0, 0])
    for height, width in model.scale_schedule:
        uniforms = np.random.default_rng(0).random(
            (2, height * width * model.bits_per_token), dtype=np.float32
        )
        state = model.advance(state, uniforms)
    assert model.decode(state).shape == (2, 48, 48, 3)


def test_training_quantises_as_generation_does() -> None:
    quantizer = Quantizer(
        codebook_dim=16, schedule=QUANTIZER.schedule, gains=(0.5,) * 13, downsample=QUANTIZER.downsample
    )
    features = torch.nn.functional.normalize(torch.randn(2, 16, 12, 12), dim=1)
    bits, summed = quantizer.encode(features)
    trained_sum, truncated, _ = quantize(quantizer, features, 6)
    torch.testing.assert_close(trained_sum, summed)
    assert not torch.allclose(truncated, summed)
    targets, inputs = corrupted_targets(quantizer, features, 13, torch.zeros(2), torch.Generator())
    assert all(torch.equal(a.to(torch.uint8), b) for a, b in zip(targets, bits, strict=True))
    running = quantizer.empty_map(2)
    for scale in range(1, 13):
        running = quantizer.accumulate(running, bits[scale - 1], scale - 1)
        torch.testing.assert_close(inputs[scale - 1], quantizer.next_input(running, scale))


def test_flipped_bits_change_later_targets_only() -> None:
    quantizer = Quantizer(codebook_dim=16, schedule=QUANTIZER.schedule, gains=(0.5,) * 13)
    features = torch.nn.functional.normalize(torch.randn(4, 16, 12, 12), dim=1)
    clean, _ = corrupted_targets(quantizer, features, 13, torch.zeros(4), torch.Generator())
    noisy, _ = corrupted_targets(
        quantizer, features, 13, torch.full((4,), 0.3), torch.Generator().manual_seed(1)
    )
    assert torch.equal(clean[0], noisy[0])
    assert any(not torch.equal(a, b) for a, b in zip(clean[1:], noisy[1:], strict=True))


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the tokenizer stage first"):
        trained_tokenizer(tmp_path)


def test_a_folder_goes_on_with_its_own_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seed").write_text("1")

    def run(*options: str) -> None:
        monkeypatch.setattr("sys.argv", ["recipes.shapes", "--work-dir", str(tmp_path), *options])
        main()

    with pytest.raises(SystemExit, match="began with seed 1, found --seed 2: take another --work-dir"):
        run("--seed", "2", "--stage", "map")
    with pytest.raises(SystemExit, match="2"):
        run("--seed", "1", "--hard")
    assert [path.name for path in tmp_path.iterdir()] == ["seed"]
