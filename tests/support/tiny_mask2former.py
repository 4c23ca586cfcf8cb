"""A Mask2Former small enough for tests, as transformers saves it and as mmdet names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

_SWIN = "model.pixel_level_module.encoder."
_PIXEL = "model.pixel_level_module.decoder."
_QUERY = "model.transformer_module."
_NAMES = (
    (_SWIN + r"swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.projection"),
    (_SWIN + r"swin\.embeddings\.norm", "backbone.patch_embed.norm"),
    (_SWIN + r"swin\.encoder\.layers\.(\d)\.blocks\.(\d)", r"backbone.stages.\1.blocks.\2"),
    (_SWIN + r"swin\.encoder\.layers\.(\d)\.downsample", r"backbone.stages.\1.downsample"),
    (r"(backbone.*)\.layernorm_before", r"\1.norm1"),
    (r"(backbone.*)\.layernorm_after", r"\1.norm2"),
    (r"(backbone.*)\.attention\.o_proj", r"\1.attn.w_msa.proj"),
    (r"(backbone.*)\.attention\.relative_position_bias\.(\w+)", r"\1.attn.w_msa.\2"),
    (r"(backbone.*)\.attention\.qkv", r"\1.attn.w_msa.qkv"),
    (r"(.*)\.mlp\.fc1", r"\1.ffn.layers.0.0"),
    (r"(.*)\.mlp\.fc2", r"\1.ffn.layers.1"),
    (_SWIN + r"hidden_states_norms\.stage1", "backbone.norm0"),
    (_SWIN + r"hidden_states_norms\.stage2", "backbone.norm1"),
    (_SWIN + r"hidden_states_norms\.stage3", "backbone.norm2"),
    (_SWIN + r"hidden_states_norms\.stage4", "backbone.norm3"),
    (_PIXEL + r"input_projections\.(\d)\.0", r"pixel.input_convs.\1.conv"),
    (_PIXEL + r"input_projections\.(\d)\.1", r"pixel.input_convs.\1.gn"),
    (_PIXEL + r"adapter_1\.0", "pixel.lateral_convs.0.conv"),
    (_PIXEL + r"adapter_1\.1", "pixel.lateral_convs.0.gn"),
    (_PIXEL + r"layer_1\.0", "pixel.output_convs.0.conv"),
    (_PIXEL + r"layer_1\.1", "pixel.output_convs.0.gn"),
    (_PIXEL + r"mask_projection", "pixel.mask_feature"),
    (_PIXEL + r"level_embed", "pixel.level_encoding.weight"),
    (_PIXEL + r"encoder\.layers\.(\d)\.self_attn_layer_norm", r"pixel.encoder.layers.\1.norms.0"),
    (_PIXEL + r"encoder\.layers\.(\d)\.final_layer_norm", r"pixel.encoder.layers.\1.norms.1"),
    (_PIXEL + r"encoder", "pixel.encoder"),
    (_QUERY + r"decoder\.mask_predictor\.mask_embedder\.0\.0", "mask_embed.0"),
    (_QUERY + r"decoder\.mask_predictor\.mask_embedder\.1\.0", "mask_embed.2"),
    (_QUERY + r"decoder\.mask_predictor\.mask_embedder\.2\.0", "mask_embed.4"),
    (_QUERY + r"decoder\.layers\.(\d)\.cross_attn_layer_norm", r"query.layers.\1.norms.0"),
    (_QUERY + r"decoder\.layers\.(\d)\.self_attn_layer_norm", r"query.layers.\1.norms.1"),
    (_QUERY + r"decoder\.layers\.(\d)\.final_layer_norm", r"query.layers.\1.norms.2"),
    (_QUERY + r"decoder\.layers\.(\d)\.self_attn\.qkv\.", r"query.layers.\1.self_attn.attn.in_proj_"),
    (_QUERY + r"decoder\.layers\.(\d)\.self_attn\.out_proj", r"query.layers.\1.self_attn.attn.out_proj"),
    (_QUERY + r"decoder\.layers\.(\d)\.cross_attn\.", r"query.layers.\1.cross_attn.attn."),
    (_QUERY + r"decoder\.layernorm", "query.post_norm"),
    (_QUERY + r"decoder", "query"),
    (_QUERY + r"queries_embedder", "query_embed"),
    (_QUERY + r"queries_features", "query_feat"),
    (_QUERY + r"level_embed", "level_embed"),
    (r"class_predictor", "cls_embed"),
    (r"((?:pixel|query)\..*)\.fc1", r"\1.ffn.layers.0.0"),
    (r"((?:pixel|query)\..*)\.fc2", r"\1.ffn.layers.1"),
    (r"pixel\.", "panoptic_head.pixel_decoder."),
    (r"query\.", "panoptic_head.transformer_decoder."),
    (r"(query_|level_embed|cls_|mask_embed)", r"panoptic_head.\1"),
)


def tiny_mask2former(*, labels: int = 80) -> Mask2FormerForUniversalSegmentation:
    """Return a network with random weights that is sure of what it sees."""
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        encoder_feedforward_dim=24,
        decoder_layers=3,
        dim_feedforward=40,
        num_attention_heads=4,
        num_queries=10,
        num_labels=labels,
    )
    torch.manual_seed(3)
    network = Mask2FormerForUniversalSegmentation(config).eval()
    for name, parameter in network.named_parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
        if name.startswith("class_predictor") or "mask_embedder.2" in name:
            parameter.data *= 12
    return network


def mmdet_weights(network: Mask2FormerForUniversalSegmentation) -> dict[str, Tensor]:
    """Return the weights under mmdet's names, fused and ordered as there."""
    weights = {
        key: value
        for key, value in network.state_dict().items()
        if ".swin.layernorm." not in key and not key.startswith("criterion.")
    }
    fused = {
        key.replace("q_proj", "qkv"): torch.cat(
            [weights[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
        )
        for key in weights
        if "q_proj" in key
    }
    kept = {key: value for key, value in weights.items() if not re.search(r"\.[qkv]_proj\.", key)}
    return {_mmdet_name(key): _mmdet_order(key, value) for key, value in {**kept, **fused}.items()}


def save_mmdet(folder: Path, weights: Mapping[str, Tensor], *, name: str = "detector.pth") -> Path:
    """Write weights as mmdet saves a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": {"CLASSES": ("person",)}, "state_dict": dict(weights)}, folder / name)
    return folder / name


def _mmdet_name(key: str) -> str:
    for pattern, name in _NAMES:
        key = re.sub(f"^{pattern}", name, key)
    return key


def _mmdet_order(key: str, weight: Tensor) -> Tensor:
    """Put the channels of a patch merging into mmdet's order, one by one."""
    if ".downsample." not in key:
        return weight
    width = weight.shape[-1] // 4
    swin = [(0, 0), (1, 0), (0, 1), (1, 1)]
    mmdet = [(0, 0), (0, 1), (1, 0), (1, 1)]
    ordered = torch.empty_like(weight)
    for channel in range(width):
        for place, neighbour in enumerate(mmdet):
            ordered[..., 4 * channel + place] = weight[..., width * swin.index(neighbour) + channel]
    return ordered
