"""The body of one rank of the transformer stage; a module of its own, so that spawned processes find it."""

from __future__ import annotations

from pathlib import Path

from recipes.shapes.assemble import trained_tokenizer
from recipes.shapes.examples import open_examples
from recipes.shapes.parallel import Rank
from recipes.shapes.transformer_stage import TransformerRecipe, train_transformer


def transformer_rank(
    rank: Rank, recipe: TransformerRecipe, work_dir: Path, num_examples: int, budget_seconds: float | None
) -> None:
    """Open the examples that all ranks share, then train."""
    tokenizer, quantizer = trained_tokenizer(work_dir)
    examples = open_examples(work_dir, tokenizer, seed=recipe.seed, size=num_examples)
    train_transformer(rank, recipe, quantizer, examples, work_dir, budget_seconds)
