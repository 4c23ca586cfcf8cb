"""Weights of GenEval's detector: the official checkpoint, renamed for transformers' Mask2Former.

The official one is mmdet's `mask2former_swin-s-p4-w7-224` for instances of COCO, 68.7 M parameters, and
transformers has the same network. Names differ, queries, keys and values are fused, and where the backbone
merges four neighbouring patches the channels are in another order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from ttsvar_ray.errors import CheckpointError, reading_weights
from ttsvar_ray.evaluate.geneval_prompts import CLASS_NAMES
from ttsvar_ray.vision.checkpoints import KeyTable, load_pretrained, load_strict, read_published, rename_keys

OFFICIAL_DIGEST = "743b7d99"
"""The sha256 of the official file begins with this: its publisher puts it into the file's name."""

OFFICIAL = "official: mmdet mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
OTHER_MMDET = "not the official detector: an mmdet checkpoint whose digest does not begin with 743b7d99"
HUB = "not the official detector: a Mask2Former of the hub, with other weights"

_SWIN = "model.pixel_level_module.encoder."
_DECODER = "model.pixel_level_module.decoder."
_HEAD = "model.transformer_module."
_STAGE = r"backbone\.stages\.(\d+)\."
_BLOCK = _STAGE + r"blocks\.(\d+)\."
_OWN_BLOCK = _SWIN + r"swin.encoder.layers.\1.blocks.\2."
_PIXEL = r"panoptic_head\.pixel_decoder\."
_PIXEL_LAYER, _OWN_PIXEL_LAYER = _PIXEL + r"encoder\.layers\.(\d+)\.", _DECODER + r"encoder.layers.\1."
_QUERY = r"panoptic_head\.transformer_decoder\."
_QUERY_LAYER, _OWN_QUERY_LAYER = _QUERY + r"layers\.(\d+)\.", _HEAD + r"decoder.layers.\1."

MMDET_KEYS: KeyTable = (
    (r"backbone\.patch_embed\.projection\.(\w+)", _SWIN + r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm\.(\w+)", _SWIN + r"swin.embeddings.norm.\1"),
    (_BLOCK + r"norm1\.(\w+)", _OWN_BLOCK + r"layernorm_before.\3"),
    (_BLOCK + r"norm2\.(\w+)", _OWN_BLOCK + r"layernorm_after.\3"),
    (_BLOCK + r"attn\.w_msa\.qkv\.(\w+)", _OWN_BLOCK + r"attention.{part}_proj.\3"),
    (_BLOCK + r"attn\.w_msa\.proj\.(\w+)", _OWN_BLOCK + r"attention.o_proj.\3"),
    (
        _BLOCK + r"attn\.w_msa\.relative_position_bias_table",
        _OWN_BLOCK + "attention.relative_position_bias.relative_position_bias_table",
    ),
    (_BLOCK + r"attn\.w_msa\.relative_position_index", None),
    (_BLOCK + r"ffn\.layers\.0\.0\.(\w+)", _OWN_BLOCK + r"mlp.fc1.\3"),
    (_BLOCK + r"ffn\.layers\.1\.(\w+)", _OWN_BLOCK + r"mlp.fc2.\3"),
    (_STAGE + r"downsample\.(norm|reduction)\.(\w+)", _SWIN + r"swin.encoder.layers.\1.downsample.\2.\3"),
    *(
        (rf"backbone\.norm{stage}\.(\w+)", _SWIN + rf"hidden_states_norms.stage{stage + 1}.\1")
        for stage in range(4)
    ),
    (_PIXEL + r"input_convs\.(\d+)\.conv\.(\w+)", _DECODER + r"input_projections.\1.0.\2"),
    (_PIXEL + r"input_convs\.(\d+)\.gn\.(\w+)", _DECODER + r"input_projections.\1.1.\2"),
    (_PIXEL + r"lateral_convs\.0\.conv\.(\w+)", _DECODER + r"adapter_1.0.\1"),
    (_PIXEL + r"lateral_convs\.0\.gn\.(\w+)", _DECODER + r"adapter_1.1.\1"),
    (_PIXEL + r"output_convs\.0\.conv\.(\w+)", _DECODER + r"layer_1.0.\1"),
    (_PIXEL + r"output_convs\.0\.gn\.(\w+)", _DECODER + r"layer_1.1.\1"),
    (_PIXEL + r"mask_feature\.(\w+)", _DECODER + r"mask_projection.\1"),
    (_PIXEL + r"level_encoding\.weight", _DECODER + "level_embed"),
    (_PIXEL_LAYER + r"self_attn\.(.+)", _OWN_PIXEL_LAYER + r"self_attn.\2"),
    (_PIXEL_LAYER + r"norms\.0\.(\w+)", _OWN_PIXEL_LAYER + r"self_attn_layer_norm.\2"),
    (_PIXEL_LAYER + r"norms\.1\.(\w+)", _OWN_PIXEL_LAYER + r"final_layer_norm.\2"),
    (_PIXEL_LAYER + r"ffn\.layers\.0\.0\.(\w+)", _OWN_PIXEL_LAYER + r"fc1.\2"),
    (_PIXEL_LAYER + r"ffn\.layers\.1\.(\w+)", _OWN_PIXEL_LAYER + r"fc2.\2"),
    (_QUERY_LAYER + r"self_attn\.attn\.in_proj_(\w+)", _OWN_QUERY_LAYER + r"self_attn.{part}_proj.\2"),
    (_QUERY_LAYER + r"self_attn\.attn\.out_proj\.(\w+)", _OWN_QUERY_LAYER + r"self_attn.out_proj.\2"),
    (_QUERY_LAYER + r"cross_attn\.attn\.(.+)", _OWN_QUERY_LAYER + r"cross_attn.\2"),
    (_QUERY_LAYER + r"norms\.0\.(\w+)", _OWN_QUERY_LAYER + r"cross_attn_layer_norm.\2"),
    (_QUERY_LAYER + r"norms\.1\.(\w+)", _OWN_QUERY_LAYER + r"self_attn_layer_norm.\2"),
    (_QUERY_LAYER + r"norms\.2\.(\w+)", _OWN_QUERY_LAYER + r"final_layer_norm.\2"),
    (_QUERY_LAYER + r"ffn\.layers\.0\.0\.(\w+)", _OWN_QUERY_LAYER + r"fc1.\2"),
    (_QUERY_LAYER + r"ffn\.layers\.1\.(\w+)", _OWN_QUERY_LAYER + r"fc2.\2"),
    (_QUERY + r"post_norm\.(\w+)", _HEAD + r"decoder.layernorm.\1"),
    (r"panoptic_head\.query_embed\.weight", _HEAD + "queries_embedder.weight"),
    (r"panoptic_head\.query_feat\.weight", _HEAD + "queries_features.weight"),
    (r"panoptic_head\.level_embed\.weight", _HEAD + "level_embed.weight"),
    (r"panoptic_head\.cls_embed\.(\w+)", r"class_predictor.\1"),
    *(
        (
            rf"panoptic_head\.mask_embed\.{2 * layer}\.(\w+)",
            _HEAD + rf"decoder.mask_predictor.mask_embedder.{layer}.0.\1",
        )
        for layer in range(3)
    ),
)
_NOT_USED = r".*\.swin\.layernorm\..*|criterion\.empty_weight"
"""transformers has them and a detector does not read them: no file of mmdet holds them."""

_REDUCTION = re.compile(r".*\.downsample\.(norm\.(weight|bias)|reduction\.weight)")
_NEIGHBOURS = (0, 2, 1, 3)
"""mmdet merges the neighbours 00, 01, 10, 11 inside each channel, Swin's channels inside 00, 10, 01, 11."""
_LEVELS, _POINTS = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorWeights:
    """A detector's network and what results say of it.

    Attributes:
        network: in float32 on the CPU.
        label: whether it is the official one.
        digest: sha256 of the weights' file.
    """

    network: Mask2FormerForUniversalSegmentation
    label: str
    digest: str


def load_detector_weights(folder: Path) -> DetectorWeights:
    """Load a detector from a folder: mmdet's one `.pth`, or a directory that transformers saved.

    Raises:
        CheckpointError: neither is there, or the weights do not fit, or do not know the 80 classes of COCO.
    """
    if (folder / "config.json").is_file():
        with reading_weights(folder):
            network = load_pretrained(
                Mask2FormerForUniversalSegmentation, folder, ignored=r".*relative_position_index"
            )
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        label, digest = HUB, sha256_of(*weights)
    else:
        files = sorted(folder.glob("*.pth")) if folder.is_dir() else []
        if len(files) != 1:
            found = [file.name for file in files] if folder.is_dir() else "no such folder"
            raise CheckpointError(
                f"{folder}: expected one .pth of mmdet, or config.json and weights as transformers saves "
                f"them; found {found}"
            )
        network, digest = load_mmdet(files[0]), sha256_of(files[0])
        label = OFFICIAL if digest.startswith(OFFICIAL_DIGEST) else OTHER_MMDET
    classes = network.config.num_labels
    if classes != len(CLASS_NAMES):
        raise CheckpointError(f"{folder}: expected {len(CLASS_NAMES)} classes, as of COCO, found {classes}")
    return DetectorWeights(network=network, label=label, digest=digest)


def load_mmdet(file: Path) -> Mask2FormerForUniversalSegmentation:
    """Load mmdet's checkpoint (weights only); the sizes of the network are read off its tensors.

    Raises:
        CheckpointError: no such checkpoint, or keys that are unknown, missing or misshapen.
    """
    with reading_weights(file):
        published = read_published(file, expected="a Mask2Former checkpoint of mmdet", inside="state_dict")
    weights = rename_keys(published, MMDET_KEYS, source=str(file))
    weights = {
        key: _reordered(weight) if _REDUCTION.fullmatch(key) else weight for key, weight in weights.items()
    }
    try:
        config = _config(published)
    except (KeyError, StopIteration, ValueError) as error:
        raise CheckpointError(
            f"{file}: expected a Mask2Former with a Swin backbone; missing: {error}"
        ) from error
    network = Mask2FormerForUniversalSegmentation(config)
    load_strict(network, weights, source=str(file), optional=_NOT_USED)
    return network


def sha256_of(*files: Path) -> str:
    """Return the sha256 of files, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _reordered(weight: Tensor) -> Tensor:
    """Return the channels of a patch merging, the last axis [4 C], in Swin's order."""
    lead = weight.shape[:-1]
    return weight.reshape(*lead, -1, 4)[..., list(_NEIGHBOURS)].transpose(-1, -2).reshape(*lead, -1)


def _config(weights: Mapping[str, Tensor]) -> Mask2FormerConfig:
    """Return the network's sizes, as mmdet's tensors imply them."""
    head, pixel = "panoptic_head.", "panoptic_head.pixel_decoder."
    depths = [_count(weights, rf"backbone\.stages\.{stage}\.blocks\.(\d+)\..*") for stage in range(4)]
    tables = [
        weights[f"backbone.stages.{stage}.blocks.0.attn.w_msa.relative_position_bias_table"]
        for stage in range(4)
    ]
    offsets = weights[f"{pixel}encoder.layers.0.self_attn.attention_weights.bias"]
    patches = weights["backbone.patch_embed.projection.weight"]
    classes, width = weights[f"{head}cls_embed.weight"].shape
    backbone = SwinConfig(
        embed_dim=patches.shape[0],
        patch_size=patches.shape[2],
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=(round(len(tables[0]) ** 0.5) + 1) // 2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=weights[f"{pixel}lateral_convs.0.conv.weight"].shape[0],
        mask_feature_size=weights[f"{pixel}mask_feature.weight"].shape[0],
        hidden_dim=width,
        encoder_layers=_count(weights, _PIXEL_LAYER + ".*"),
        encoder_feedforward_dim=weights[f"{pixel}encoder.layers.0.ffn.layers.0.0.weight"].shape[0],
        # One more than there are layers: predictions are made before the first, too.
        decoder_layers=_count(weights, _QUERY_LAYER + ".*") + 1,
        dim_feedforward=weights[f"{head}transformer_decoder.layers.0.ffn.layers.0.0.weight"].shape[0],
        num_attention_heads=len(offsets) // (_LEVELS * _POINTS),
        num_queries=weights[f"{head}query_feat.weight"].shape[0],
        # The last class is no object.
        num_labels=classes - 1,
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbers the first group of a pattern takes among the keys."""
    return len({match[1] for key in weights if (match := re.fullmatch(pattern, key))})
