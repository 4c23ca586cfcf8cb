"""Train the built-in model: `python -m recipes.shapes [--stage ...]`.

    scenes -> tokenizer -> examples -> transformer -> reward -> model directory -> its reward on feature maps

Each stage goes on from its last checkpoint; a run may be stopped and started at any moment. Learning
curves are the .jsonl files of the work folder. With `--hard` the transformer and the reward of the shipped
model are trained on instead, harder captions among the others: recipes/shapes/hard.py. `--seed 1` draws
every scene, caption, weight and batch anew: a model that differs from the shipped one by chance alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

from recipes.shapes.assemble import assemble, trained_tokenizer
from recipes.shapes.captions import sample_example
from recipes.shapes.examples import make_examples, open_examples
from recipes.shapes.hard import TRANSFORMER, begin_with, reward_recipe, sample_mixed_example
from recipes.shapes.map_stage import map_stage
from recipes.shapes.parallel import run_ranks
from recipes.shapes.pool import open_pool
from recipes.shapes.progress import load_checkpoint
from recipes.shapes.reward_degrade import blur_and_noise, load_truncated_decodes
from recipes.shapes.reward_training import RewardRecipe, export_reward, train_reward
from recipes.shapes.tokenizer_stage import TokenizerRecipe, train_tokenizer
from recipes.shapes.transformer_rank import transformer_rank
from recipes.shapes.transformer_stage import TransformerRecipe

STAGES = ("tokenizer", "transformer", "reward", "assemble", "map")
HARD_STAGES = ("transformer", "reward", "assemble")


def _is_finished(work_dir: Path, stage: str, steps: int) -> bool:
    state = load_checkpoint(work_dir / f"{stage}.pt")
    return state is not None and state["step"] >= steps


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes", description=__doc__)
    parser.add_argument("--hard", action="store_true", help="train the shipped model on, for harder captions")
    parser.add_argument("--seed", type=int, help="of everything drawn; default: the recipe's, 0")
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="default: .shapes-training, of --hard its folder hard, of --seed N its folder seed-N",
    )
    parser.add_argument("--model-dir", type=Path, default=None, help="default: WORK_DIR/model")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--budget-seconds", type=float, default=None, help="of one stage in this session")
    parser.add_argument(
        "--examples",
        type=int,
        help="captioned scenes for the transformer; default: 100000, with --hard 16000",
    )
    parser.add_argument("--tokenizer-steps", type=int, default=TokenizerRecipe().steps)
    parser.add_argument("--transformer-steps", type=int, help="default: as in the recipe")
    parser.add_argument("--ranks", type=int, default=None, help="CPU processes; default one a core")
    options = parser.parse_args()
    if options.hard and options.stage not in ("all", *HARD_STAGES):
        parser.error(f"--stage {options.stage}: with --hard expected one of all, {', '.join(HARD_STAGES)}")
    if options.seed is not None and (options.hard or options.seed < 0):
        parser.error(f"--seed {options.seed}: expected 0 or more, and not with --hard, which has its own")
    return options


def _hold_seed(work_dir: Path, seed: int) -> None:
    """Refuse to go on with another seed than that which the folder's checkpoints began with."""
    path = work_dir / "seed"
    if path.exists() and int(path.read_text()) != seed:
        raise SystemExit(
            f"{path}: began with seed {path.read_text()}, found --seed {seed}: take another --work-dir"
        )
    work_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(str(seed))


def main() -> None:
    """Run the wanted stages in order; stop where a stage's budget is used up."""
    arguments = _parse()
    seed: int = arguments.seed or 0
    within = ["hard"] if arguments.hard else [f"seed-{seed}"] if seed else []
    work_dir: Path = arguments.work_dir or Path(".shapes-training", *within)
    model_dir: Path = arguments.model_dir or work_dir / "model"
    every = HARD_STAGES if arguments.hard else STAGES
    wanted = every if arguments.stage == "all" else (arguments.stage,)
    budget = arguments.budget_seconds
    if arguments.hard:
        begin_with("shapes", work_dir)
    else:
        _hold_seed(work_dir, seed)
    if "tokenizer" in wanted:
        recipe = TokenizerRecipe(steps=arguments.tokenizer_steps, seed=seed)
        pool = open_pool(work_dir, seed=seed)
        run_ranks(train_tokenizer, recipe, pool, work_dir, budget, ranks=arguments.ranks)
        if not _is_finished(work_dir, "tokenizer", recipe.steps):
            raise SystemExit("tokenizer: budget used up; the same command goes on")
    if "transformer" in wanted:
        steps = TRANSFORMER if arguments.hard else TransformerRecipe(seed=seed)
        steps = dataclasses.replace(steps, steps=arguments.transformer_steps or steps.steps)
        size = arguments.examples or (16_000 if arguments.hard else 100_000)
        sample = sample_mixed_example if arguments.hard else sample_example
        make_examples(work_dir, seed=steps.seed, size=size, sample=sample)
        tokenizer, _ = trained_tokenizer(work_dir)
        open_examples(work_dir, tokenizer, seed=steps.seed, size=size)
        run_ranks(transformer_rank, steps, work_dir, size, budget, ranks=arguments.ranks)
        if not _is_finished(work_dir, "transformer", steps.steps):
            raise SystemExit("transformer: budget used up; the same command goes on")
    if "reward" in wanted:
        _reward_stage(work_dir, budget, reward_recipe() if arguments.hard else RewardRecipe(seed=seed))
    if "assemble" in wanted:
        _assemble_stage(work_dir, model_dir, "-".join(["shapes", *within]))
    if "map" in wanted and not map_stage(model_dir, work_dir, budget, seed=seed):
        raise SystemExit("map: budget used up; the same command goes on")


def _reward_stage(work_dir: Path, budget_seconds: float | None, recipe: RewardRecipe) -> None:
    degrade = load_truncated_decodes(work_dir) or blur_and_noise
    if not train_reward(work_dir, recipe=recipe, degrade=degrade, budget_seconds=budget_seconds):
        raise SystemExit("reward: budget used up; the same command goes on")
    export_reward(work_dir, work_dir / "reward", degrade=degrade, mix=recipe.mix)


def _assemble_stage(work_dir: Path, model_dir: Path, name: str) -> None:
    """Write the model directory with the shipped model's tuned settings (docs/shapes_model.md)."""
    shipped = json.loads(Path(__file__).with_name("settings.json").read_text())
    assemble(work_dir, model_dir, name=name, **shipped)
    shutil.copytree(work_dir / "reward", model_dir / "reward", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
