"""A published VAR by name: its description, without any file, and without torch."""

from __future__ import annotations

from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.models.registry import FamilyEntry, imported_when_called
from ttsvar_ray.models.sampling import SamplingSettings, per_scale
from ttsvar_ray.models.var.config import FAMILY, PRESETS, VarPreset, VqConfig, linear_guidance
from ttsvar_ray.models.weight_source import HubRepository, WeightSource, parse_root

REWARD = "clip-score"
EXTRACTOR = "pca"


def describe_var_preset(preset: VarPreset, *, path: str | None = None) -> ModelDescription:
    """Describe a published model without reading its weights.

    Args:
        path: folder of its files under their published names, or `hf:owner/name[@revision]`; None is the
            repository they were published in.
    """
    root = HubRepository(preset.repository) if path is None else parse_root(path)
    schedule, scales = preset.scale_schedule, len(preset.scale_schedule)
    tokenizer = VqConfig(
        vocabulary=preset.transformer.vocabulary, codebook_dim=preset.transformer.codebook_dim
    )
    return ModelDescription(
        source=preset.name,
        name=preset.name,
        family=FAMILY,
        scale_schedule=schedule,
        bits_per_token=preset.transformer.bits_per_token,
        image_height=schedule[-1][0] * tokenizer.patch_size,
        image_width=schedule[-1][1] * tokenizer.patch_size,
        sampling=SamplingSettings(
            guidance=linear_guidance(preset.guidance_peak, scales),
            temperature=per_scale("temperature", 1.0, scales),
            top_p=preset.top_p,
            top_k=preset.top_k,
        ),
        plan=preset.plan,
        reward_name=REWARD,
        reward_path=None,
        extractor=EXTRACTOR,
        backbone_path=None,
        transformer=preset.transformer.to_json(),
        tokenizer=tokenizer.to_json(),
        weights={
            "transformer": WeightSource(root, preset.checkpoint),
            "tokenizer": WeightSource(root, preset.tokenizer_checkpoint),
        },
    )


ENTRY = FamilyEntry(
    load=imported_when_called("ttsvar_ray.models.var.directory:load_var"),
    on_meta=imported_when_called("ttsvar_ray.models.var.directory:var_on_meta"),
    published=PRESETS,
    describe=lambda choice: describe_var_preset(PRESETS[choice.name], path=choice.path),
    reads_texts=False,
    licence="mit",
)
