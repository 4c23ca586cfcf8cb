"""A recorded architecture as our own modules, and what is compared in each kind of recorded file.

`verify.py` says which kinds there are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttsvar_ray.models.autoencoder import to_uint8
from ttsvar_ray.models.infinity.config import TokenizerConfig, TransformerConfig
from ttsvar_ray.models.infinity.directory import build_tokenizer, build_transformer
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.resolutions import FULL_SCHEDULES
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.sampling import SamplingSettings, top_p_margin
from ttsvar_ray.models.state import KVCache, ScaleState
from ttsvar_ray.recorded import EXACT, Case
from ttsvar_ray.types import ScaleSchedule


@dataclass(frozen=True, slots=True)
class _RecordedTexts:
    """Text features by name, in place of a text encoder."""

    features: dict[str, Tensor]
    max_length: int

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = [self.features[text] for text in texts]
        padded = torch.zeros(len(found), self.max_length, found[0].shape[-1])
        for row, rows in zip(padded, found, strict=True):
            row[: len(rows)] = rows
        return padded, torch.tensor([len(rows) for rows in found])

    def cuts(self, text: str) -> bool:
        return False

    @classmethod
    def unpack(cls, compact: Tensor, lens: Sequence[int], max_length: int) -> _RecordedTexts:
        """Split features [sum of lens, channels]; the texts are named "0", "1", ..."""
        parts = compact.float().split(list(lens))
        return cls({str(index): part for index, part in enumerate(parts)}, max_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedArchitecture:
    """One letter of config.json with its weights."""

    values: dict[str, Any]
    transformer_weights: dict[str, Tensor]
    tokenizer_weights: dict[str, Tensor] | None
    device: torch.device
    dtype: torch.dtype

    def transformer(self, schedule: ScaleSchedule, rope_grid: tuple[int, int]) -> InfinityTransformer:
        model, dim = self.values["model"], self.values["vae"]["codebook_dim"]
        config = TransformerConfig(
            depth=model["depth"],
            embed_dim=model["embed_dim"],
            num_heads=model["num_heads"],
            block_chunks=model["block_chunks"],
            bits_per_token=dim * (4 if self.values["patchify"] else 1),
            text_channels=model["text_channels"],
            text_max_length=model["text_maxlen"],
            rope_grid=rope_grid,
            mlp_ratio=self.values["mlp_ratio"],
        )
        return build_transformer(
            config,
            schedule,
            self.transformer_weights,
            device=self.device,
            dtype=self.dtype,
            source="recorded transformer",
        )

    def tokenizer(self) -> ImageTokenizer:
        vae = self.values["vae"]
        config = TokenizerConfig(
            codebook_dim=vae["codebook_dim"],
            base_channels=vae["base_ch"],
            encoder_multipliers=tuple(vae["enc_mult"]),
            decoder_multipliers=tuple(vae["dec_mult"]),
            num_res_blocks=vae["num_res_blocks"],
        )
        if self.tokenizer_weights is None:
            return ImageTokenizer(config).to(self.device).eval()
        return build_tokenizer(
            config, self.tokenizer_weights, device=self.device, source="recorded tokenizer"
        )

    def quantizer(self, schedule: ScaleSchedule) -> Quantizer:
        return Quantizer(
            codebook_dim=self.values["vae"]["codebook_dim"],
            schedule=schedule,
            spatial_patchify=bool(self.values["patchify"]),
        )

    def model(
        self, texts: _RecordedTexts, schedule: ScaleSchedule, aspect: float, sampling: SamplingSettings
    ) -> InfinityModel:
        return InfinityModel(
            name="recorded",
            transformer=self.transformer(schedule, FULL_SCHEDULES[aspect][-1]),
            tokenizer=self.tokenizer(),
            quantizer=self.quantizer(schedule),
            text_encoder=texts,
            sampling=sampling,
        )


Tensors = Mapping[str, Tensor]

LOGITS, HIDDEN, FEATURES, IMAGE, IMAGE_FP16, LEVELS = 2e-3, 2e-3, 1e-5, 2e-4, 1e-3, 1.0
"""Tolerances (largest absolute difference) in float32; recorded logits have standard deviation 7.

LEVELS is for 8-bit images: truncation may land on the other side of a whole number.
"""

SAMPLED_SEED, SAMPLED_GUIDANCE, SAMPLED_TEMPERATURE, SAMPLED_TOP_P = 1234, 3.0, 0.5, 0.97
"""Settings of the free runs and of the forced TTS-VAR run, which the recorded files leave out."""


def _schedule(t: Tensors) -> ScaleSchedule:
    return tuple((int(h), int(w)) for _, h, w in t["scale_schedule"].tolist())


def _settings(t: Tensors) -> SamplingSettings:
    return SamplingSettings(
        guidance=tuple(t["cfg_list"].tolist()),
        temperature=tuple(t["tau_list"].tolist()),
        top_p=SAMPLED_TOP_P,
    )


def _bit_tokens(quantizer: Quantizer, bits: Tensor) -> Tensor:
    """Turn recorded bits [B, 1, h', w', d] into tokens [B, n, D]."""
    return quantizer.map_to_tokens(bits[:, 0].permute(0, 3, 1, 2)).contiguous()


def _without_time(grid: Tensor) -> Tensor:
    """Drop the time axis that some recorded maps have: [B, d, (1,) H, W]."""
    return grid[:, :, 0] if grid.ndim == 5 else grid


def _compact(per_text: Tensor, lens: Sequence[int]) -> Tensor:
    """Drop the padding of [S, P, T, C], stream by stream, as the official code packs texts."""
    return torch.cat([stream[i, :length] for stream in per_text for i, length in enumerate(lens)])


def check_tokenizer(arch: RecordedArchitecture, case: Case) -> None:
    t, tokenizer = case.recorded, arch.tokenizer()
    schedule = _schedule(t)
    # The tokenizer's recorded schedule is that of its feature map, patchified or not.
    quantizer = Quantizer(codebook_dim=tokenizer.config.codebook_dim, schedule=schedule)
    tokens = functools.partial(_bit_tokens, quantizer)
    features = tokenizer.encode(t["image"].to(arch.device, torch.float32))
    case.compare("enc_features", features, FEATURES)
    all_bits, z = quantizer.encode(features)
    case.compare("z", z, FEATURES)
    case.compare("decoded", tokenizer.decode(z), IMAGE)
    summed = quantizer.empty_map(1, arch.device)
    for index, bits in enumerate(all_bits):
        case.compare(f"s{index}.bits", bits, EXACT, view=tokens)
        summed = quantizer.accumulate(summed, tokens(t[f"s{index}.bits"]).to(arch.device), index)
        if index + 1 < len(schedule):
            reduced = F.interpolate(summed, size=schedule[index + 1], mode="area")
            case.compare(f"s{index}.var_input_area", reduced, FEATURES, view=_without_time)
    case.compare("summed_from_bits", summed, FEATURES, view=_without_time)
    case.compare("decoded_from_bits", tokenizer.decode(summed), IMAGE)


def check_forced(arch: RecordedArchitecture, case: Case) -> None:
    t, schedule = case.recorded, _schedule(case.recorded)
    texts = _RecordedTexts.unpack(
        t["text.kv_compact"], t["text.lens"].tolist(), arch.values["model"]["text_maxlen"]
    )
    template = arch.values["cases"][case.name.split("_", 1)[1]]["template"]
    model = arch.model(texts, schedule, template, _settings(t))
    names = list(texts.features)
    text, lens = (part.to(arch.device) for part in texts.encode(names))
    _check_conditioning(model.transformer, text, lens, case)
    _check_steps(model, text, lens, case)
    all_bits = [_bit_tokens(model.quantizer, t[f"s{i}.bits"]) for i in range(len(schedule))]
    state = model.start(model.encode_text(names), range(len(names)))
    for bits in all_bits:
        state = _force(model, state, bits, case)
    case.compare("decode_in", state.summed, FEATURES)
    _check_image(arch, model, state, case)
    again = model.replay(
        model.start(model.encode_text(names), range(len(names))), [bits.numpy() for bits in all_bits]
    )
    _check_equal_states("replay", again, state, case)


def _check_conditioning(transformer: InfinityTransformer, text: Tensor, lens: Tensor, case: Case) -> None:
    both = torch.stack((text, transformer.unconditional_text(lens)[0]))
    normed = transformer.text_norm(both)
    case.compare("text_normed", _compact(normed, lens.tolist()), FEATURES)
    case.compare("ca_kv", _compact(transformer.text_proj_for_ca(normed), lens.tolist()), FEATURES)
    conditioning = transformer.condition(text, lens, guidance=True)
    case.compare("sos_cond_BD", conditioning.pooled.flatten(0, 1), FEATURES)
    case.compare("gss", conditioning.block_modulation.flatten(0, 1)[:, None], FEATURES)


def _check_steps(model: InfinityModel, text: Tensor, lens: Tensor, case: Case) -> None:
    """Feed the recorded bits; compare inside the transformer."""
    transformer, quantizer = model.transformer, model.quantizer
    conditioning = transformer.condition(text, lens, guidance=True)
    cache, features = KVCache(), None
    summed = quantizer.empty_map(len(lens), model.device)
    seen: dict[str, Tensor] = {}
    for index in range(model.num_scales):
        logits, cache = transformer.scale_step(features, index, cache, conditioning, observe=seen.__setitem__)
        case.compare(f"s{index}.logits_cond", logits[0], LOGITS)
        case.compare(f"s{index}.logits_uncond", logits[1], LOGITS)
        for key, got in seen.items():
            case.compare(f"s{index}.{key}", got, HIDDEN)
        if index + 1 < model.num_scales:
            bits = _bit_tokens(quantizer, case.recorded[f"s{index}.bits"]).to(model.device)
            summed = quantizer.accumulate(summed, bits, index)
            features = quantizer.next_input(summed, index + 1)
            case.compare(f"s{index}.next_in", features, FEATURES)
    case.compare("kv.block0.k", seen["keys0"].flatten(0, 1), HIDDEN)
    case.compare("kv.block0.v", seen["values0"].flatten(0, 1), HIDDEN)


def _force(model: InfinityModel, state: ScaleState, bits: Tensor, case: Case) -> ScaleState:
    """Advance one scale with recorded bits, comparing its logits and the new feature map."""
    index = state.scale_index
    given = bits.to(model.device)

    def choose(logits: Tensor) -> Tensor:
        case.compare(f"s{index}.logits_cfg", logits.flatten(-2), LOGITS)
        return given

    state = model.advance_with(state, choose)
    case.compare(f"s{index}.summed", state.summed, FEATURES, view=_without_time)
    return state


def _check_equal_states(name: str, got: ScaleState, expected: ScaleState, case: Case) -> None:
    case.between(f"{name}.summed", got.summed, expected.summed, EXACT)
    for index, (mine, theirs) in enumerate(zip(got.cache.layers, expected.cache.layers, strict=True)):
        case.between(f"{name}.keys{index}", mine.keys, theirs.keys, EXACT)
        case.between(f"{name}.values{index}", mine.values, theirs.values, EXACT)


def _check_image(arch: RecordedArchitecture, model: InfinityModel, state: ScaleState, case: Case) -> None:
    if arch.tokenizer_weights is not None and case.recorded.keys() & {"decoded", "image_bgr_u8"}:
        image = model.decode_float(state.summed)
        half = "decoded" in case.recorded and case.recorded["decoded"].dtype == torch.float16
        case.compare("decoded", image, IMAGE_FP16 if half else IMAGE)
        case.compare("image_bgr_u8", to_uint8(image), LEVELS, view=lambda bgr: bgr.flip(-1))


def multinomial_bits(logits: Tensor, *, generator: torch.Generator, top_p: float) -> Tensor:
    """Draw bits [B, n, D] from logits [B, n, D, 2] with the official calls, to compare with free runs."""
    gap = logits[..., 1] - logits[..., 0]
    certain = gap.abs() >= top_p_margin(top_p)
    rarer = torch.stack((gap > 0, gap <= 0), dim=-1)
    kept = logits.masked_fill(certain[..., None] & rarer, -torch.inf)
    probabilities = kept.softmax(dim=-1).reshape(-1, 2)
    drawn = torch.multinomial(probabilities, num_samples=1, replacement=True, generator=generator)
    return drawn.reshape(gap.shape).to(torch.uint8)


def check_sampled(arch: RecordedArchitecture, case: Case) -> None:
    if arch.device.type != "cpu" or arch.dtype != torch.float32:
        case.leave_out("its bits follow from a CPU generator and float32 logits")
        return
    t = case.recorded
    texts = _RecordedTexts.unpack(
        t["text.kv_compact"], t["text.lens"].tolist(), arch.values["model"]["text_maxlen"]
    )
    model = arch.model(texts, _schedule(t), 1.0, _settings(t))
    names = list(texts.features)
    state = model.start(model.encode_text(names), range(len(names)))
    generator = torch.Generator().manual_seed(SAMPLED_SEED)
    for index in range(model.num_scales):

        def choose(logits: Tensor, index: int = index) -> Tensor:
            case.compare(f"s{index}.logits_cfg", logits.flatten(-2), LOGITS)
            return multinomial_bits(logits, generator=generator, top_p=SAMPLED_TOP_P)

        state = model.advance_with(state, choose)
        case.compare(
            f"s{index}.bits", state.bits[index], EXACT, view=functools.partial(_bit_tokens, model.quantizer)
        )
    _check_image(arch, model, state, case)


def check_selections(arch: RecordedArchitecture, case: Case) -> None:
    t, schedule = case.recorded, _schedule(case.recorded)
    compact = t["text.kv_compact_one_prompt"]
    texts = _RecordedTexts.unpack(compact, [len(compact)], arch.values["model"]["text_maxlen"])
    sampling = SamplingSettings(
        guidance=(SAMPLED_GUIDANCE,) * len(schedule),
        temperature=(SAMPLED_TEMPERATURE,) * len(schedule),
        top_p=SAMPLED_TOP_P,
    )
    model = arch.model(texts, schedule, 1.0, sampling)
    selections = {
        int(key.rsplit("_s", 1)[1]): ids.tolist() for key, ids in t.items() if "_ids_after_s" in key
    }
    text = model.encode_text(["0"])
    state = model.start(text, [0] * t["s0.bits"].shape[0])
    for index in range(len(schedule)):
        state = _force(model, state, _bit_tokens(model.quantizer, t[f"s{index}.bits"]), case)
        if index in selections:
            state = model.gather(state, selections[index])
            again = model.replay(model.start(text, [0] * state.num_rows), model.bits(state))
            _check_equal_states(f"replay_after_s{index}", again, state, case)
    _check_image(arch, model, state, case)
