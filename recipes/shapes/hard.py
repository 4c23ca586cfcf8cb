"""A second model, trained on from the shipped one: usual and harder captions mixed.

Texts of the harder prompt sets are kept out, in any wording.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from recipes.shapes.captions import KIND_WEIGHTS, Mix
from recipes.shapes.progress import save_checkpoint
from recipes.shapes.prompt_set import PromptSet, distinct_captions
from recipes.shapes.reward_degrade import take_tokenizer
from recipes.shapes.reward_training import CHECKPOINT, RewardRecipe, RewardTrainer
from recipes.shapes.scenes import Scene
from recipes.shapes.transformer_stage import Course, TextToBits, TransformerRecipe
from ttsvar_ray.models.infinity.text import T5TextEncoder
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.shapes.world import HARD_KINDS, Caption, Kind

MIXED_WEIGHTS: dict[Kind, float] = {
    **{kind: 0.31 * weight for kind, weight in KIND_WEIGHTS.items()},
    Kind.COLOR_POSITION: 0.16,
    Kind.TWO_COUNTS: 0.065,
    Kind.THREE_OBJECT: 0.40,
    Kind.TWO_RELATIONS: 0.065,
}
"""How often each kind is drawn: most where an hour of one processor core shows."""
TRANSFORMER = TransformerRecipe(
    steps=1400,
    courses=(
        Course(num_scales=8, batch=26, early_share=0.42, late_share=0.36),
        Course(num_scales=10, batch=16, early_share=0.46, late_share=0.46),
        Course(num_scales=13, batch=5, early_share=0.12, late_share=0.18),
    ),
    learning_rate=1e-3,
    muon=False,
    warmup=30,
    decay_share=0.6,
    weight_average=0.99,
    report_every=25,
    seed=1,
)
"""Muon multiplies in bfloat16, which processors without AVX-512 imitate: AdamW alone costs them a third."""


@functools.cache
def mix() -> Mix:
    """Return the mix of usual and harder captions; without what the harder prompt sets say, in any words."""
    held_out = frozenset(
        (caption.claims, caption.relations)
        for kind in HARD_KINDS
        for name in PromptSet
        for caption in distinct_captions(name, kind)
    )
    return Mix(weights=MIXED_WEIGHTS, held_out=held_out)


def reward_recipe() -> RewardRecipe:
    """Return how the reward is trained on."""
    return RewardRecipe(
        steps=400,
        batch=48,
        learning_rate=6e-4,
        muon=False,
        warmup=30,
        weight_average=0.99,
        measure_every=1000,
        seed=1,
        mix=mix(),
    )


def sample_mixed_example(rng: np.random.Generator) -> tuple[Scene, Caption]:
    """Draw a caption of the mix and a scene that shows just that."""
    return mix().example(rng)


def begin_with(name: str, work_dir: Path) -> None:
    """Write a finished model's weights as the checkpoints that the stages go on from, where there are none.

    Args:
        name: of the model, or its folder; of the built-in sizes.
        work_dir: gets `tokenizer.pt` (finished), `transformer.pt` and `reward.pt` (at step 0; the read-outs
            that the reward is trained with begin anew, for models have none).
    """
    if (work_dir / CHECKPOINT).exists():
        return
    model, reward = take_tokenizer(name, work_dir), describe_model(name).reward_path
    both, trainer = TextToBits(), RewardTrainer()
    both.transformer.load_state_dict(model.transformer.state_dict())
    assert isinstance(model.text_encoder, T5TextEncoder)
    both.text_encoder.load_state_dict(model.text_encoder.model.state_dict())
    assert reward is not None
    trainer.network.load_state_dict(load_file(reward / "model.safetensors"))
    for path, key, state in (
        ("transformer.pt", "model", both.state_dict()),
        (CHECKPOINT, "trainer", trainer.state_dict()),
    ):
        save_checkpoint(work_dir / path, {key: state, "average": state, "step": 0})
