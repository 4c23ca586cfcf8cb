"""The networks of a published model with random weights, made on the device: to measure, not to look at.

Nothing is read from disk and no second copy passes through the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertTokenizer,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ttsvar_ray.features.backbones import PatchBackbone, dinov2_backbone
from ttsvar_ray.features.patch_features import PatchFeatures, principal_component_features
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.presets import TEXT_CHANNELS, TEXT_MAX_LENGTH, TOP_P, InfinityPreset
from ttsvar_ray.models.infinity.resolutions import Resolution
from ttsvar_ray.models.infinity.text import T5TextEncoder
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.sampling import SamplingSettings, per_scale
from ttsvar_ray.rewards.blip import (
    PUBLISHED_IMAGE_REWARD,
    BlipRewardConfig,
    BlipRewardNetwork,
    TextSize,
    VisionSize,
)
from ttsvar_ray.rewards.image_reward import ImageReward
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.types import Precision, Preprocessing
from ttsvar_ray.vision.batches import torch_dtype

WORDS = ("a", "two", "red", "green", "blue", "circle", "ring", "square", "above", "beside", "on", "grass")

T5_XL = T5Config(
    vocab_size=32128,
    d_model=TEXT_CHANNELS,
    d_kv=64,
    d_ff=5120,
    num_layers=24,
    num_heads=32,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
)

DINOV2_LARGE = Dinov2WithRegistersConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=518,
    patch_size=14,
    num_register_tokens=4,
)

_NARROW: dict[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
NARROW_REWARD = BlipRewardConfig(
    name="narrow",
    vision=VisionSize(**_NARROW, image_size=224, patch_size=16),
    text=TextSize(**_NARROW, vocab_size=64, max_position_embeddings=40),
    head_widths=(16, 1),
    max_text_tokens=35,
)
NARROW_DINOV2 = Dinov2WithRegistersConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=224,
    patch_size=14,
    num_register_tokens=4,
)
"""Judges that take no time: for tests, and where the generator alone is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSizes:
    """Which networks to make.

    Attributes:
        preset: the generator.
        text_encoder, reward, extractor: the published sizes, unless a test wants smaller ones.
    """

    preset: InfinityPreset
    text_encoder: T5Config = field(default_factory=lambda: T5_XL)
    reward: BlipRewardConfig = PUBLISHED_IMAGE_REWARD
    extractor: Dinov2WithRegistersConfig = field(default_factory=lambda: DINOV2_LARGE)


def random_model(
    sizes: NetworkSizes, resolution: Resolution, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> InfinityModel:
    """Return an Infinity with random weights, in the dtypes that loading gives it."""
    preset, scales = sizes.preset, len(resolution.schedule)
    with torch.device("meta"):
        transformer = InfinityTransformer(preset.transformer_config(resolution), resolution.schedule)
        tokenizer = ImageTokenizer(preset.tokenizer.config())
        text_encoder = T5EncoderModel(sizes.text_encoder)
    transformer.set_block_dtype(dtype)
    if device.type == "cuda" and dtype == torch.bfloat16:
        text_encoder.to(torch.float16)
        for name, module in text_encoder.named_modules():
            if name.endswith(".wo"):
                module.float()
    for module in (transformer, tokenizer, text_encoder):
        fill(module, device, seed=seed)
    text_encoder.tie_weights()
    return InfinityModel(
        name=preset.name,
        transformer=transformer,
        tokenizer=tokenizer,
        quantizer=preset.quantizer(resolution),
        text_encoder=T5TextEncoder(text_encoder, _text_tokenizer(), TEXT_MAX_LENGTH),
        sampling=SamplingSettings(
            guidance=per_scale("guidance", preset.guidance, scales),
            temperature=per_scale("temperature", preset.temperature, scales),
            top_p=TOP_P,
        ),
    )


def random_reward(
    sizes: NetworkSizes,
    *,
    device: torch.device,
    seed: int = 1,
    precision: Precision = Precision.FLOAT32,
) -> ImageReward:
    """Return an ImageReward with random weights."""
    network = BlipRewardNetwork(sizes.reward)
    fill(network, torch.device("cpu"), seed=seed)
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    reward = ImageReward(
        config=sizes.reward,
        weights=network.state_dict(),
        tokenizer=BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}),
        device=str(device),
        dtype=torch_dtype(precision),
    )
    reward.tf32 = precision is Precision.TF32
    return reward


def random_backbone(
    sizes: NetworkSizes,
    *,
    device: torch.device,
    seed: int = 2,
    precision: Precision = Precision.FLOAT32,
) -> PatchBackbone:
    """Return DINOv2 with random weights."""
    network = Dinov2WithRegistersModel(sizes.extractor)
    fill(network, torch.device("cpu"), seed=seed)
    return dinov2_backbone(
        network, "random", preprocessing=Preprocessing.PUBLISHED, device=str(device), precision=precision
    )


def random_extractor(sizes: NetworkSizes, *, device: torch.device) -> PatchFeatures:
    """Return DINOv2's `pca` with random weights."""
    backbone = random_backbone(sizes, device=device)
    return principal_component_features(backbone, ComponentSign.DETERMINISTIC)


def fill(module: nn.Module, device: torch.device, *, seed: int) -> None:
    """Move a module from the meta device, if it is there, and fill it: matrices scaled by their inputs."""
    if any(parameter.is_meta for parameter in module.parameters()):
        module.to_empty(device=device)
    generator = torch.Generator(device=next(module.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("zero_k_bias"):
                tensor.zero_()
            elif name.endswith("scale_mul_1H11"):
                tensor.fill_(math.log(4.0))
            elif not tensor.is_floating_point():
                continue
            elif tensor.ndim == 1:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                std = 1 / math.sqrt(math.prod(tensor.shape[1:]))
                tensor.normal_(std=std, generator=generator)
    module.requires_grad_(False).eval()


def _text_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
