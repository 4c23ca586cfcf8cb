"""Compare this implementation with recorded tensors of the official one, on this machine.

A folder in the recorded format holds `config.json` (architectures and cases), `weights_{X}_infinity`,
`weights_{X}_vae` (without which no image is compared) and, as safetensors each, some of

* `case_{X}_{name}`: forced bits; conditioning, inputs, block outputs, KV cache, logits, feature maps, image;
* `case_{X}_sampled`: a free run whose bits come from `torch.multinomial` on a CPU generator;
* `case_{X}_ttsvar_forced`: a population of one prompt through two forced selections;
* `vae_{X}_{name}`: the tokenizer alone.

A file may leave tensors out. Beyond the recorded ones each forced case also checks that teacher forcing
equals the incremental path and that a replay from bits equals the state that drew them.

Not compared: `bf16ca.*`, logits of the official code on a CPU with its cross-attention rounded to bfloat16
for a GPU kernel. This code attends in the dtype of its blocks; the difference (up to 1 on logits of
standard deviation 7) is that rounding, amplified by random weights. `final_scores` come from a stand-in
reward.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.infinity.directory import build_tokenizer, build_transformer
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.resolutions import FULL_SCHEDULES
from ttsvar_ray.models.infinity.state import InfinityState
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer, TokenizerConfig, to_uint8
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.infinity.verification import (
    EXACT,
    FEATURES,
    HIDDEN,
    IMAGE,
    IMAGE_FP16,
    LEVELS,
    LOGITS,
    RecordedCase,
    Tensors,
    VerificationReport,
)
from ttsvar_ray.models.kv_cache import KVCache
from ttsvar_ray.models.registry import resolve_device, resolve_dtype
from ttsvar_ray.models.sampling import SamplingSettings, top_p_margin
from ttsvar_ray.types import ScaleSchedule

SAMPLED_SEED, SAMPLED_GUIDANCE, SAMPLED_TEMPERATURE, SAMPLED_TOP_P = 1234, 3.0, 0.5, 0.97
"""Settings of the free runs and of the forced TTS-VAR run, which the recorded files leave out."""


@dataclass(frozen=True, slots=True)
class RecordedTexts:
    """Text features by name, in place of a text encoder."""

    features: dict[str, Tensor]
    max_length: int

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = [self.features[text] for text in texts]
        padded = torch.zeros(len(found), self.max_length, found[0].shape[-1])
        for row, rows in zip(padded, found, strict=True):
            row[: len(rows)] = rows
        return padded, torch.tensor([len(rows) for rows in found])

    @classmethod
    def unpack(cls, compact: Tensor, lens: Sequence[int], max_length: int) -> RecordedTexts:
        """Split features [sum of lens, channels]; the texts are named "0", "1", ..."""
        parts = compact.float().split(list(lens))
        return cls({str(index): part for index, part in enumerate(parts)}, max_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    """One letter of config.json with its weights."""

    values: dict[str, Any]
    transformer_weights: Tensors
    tokenizer_weights: Tensors | None
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
        self, texts: RecordedTexts, schedule: ScaleSchedule, aspect: float, sampling: SamplingSettings
    ) -> InfinityModel:
        return InfinityModel(
            name="recorded",
            transformer=self.transformer(schedule, FULL_SCHEDULES[aspect][-1]),
            tokenizer=self.tokenizer(),
            quantizer=self.quantizer(schedule),
            text_encoder=texts,
            sampling=sampling,
        )


def verify_directory(path: Path, *, device: str = "cpu", dtype: str = "float32") -> VerificationReport:
    """Run every case of a recorded folder and report the errors per tensor.

    Args:
        path: the folder.
        device: "cpu", "cuda", "auto".
        dtype: "float32" (judged by absolute differences) or "bfloat16" (by relative ones).

    Raises:
        CheckpointError: the folder lacks its config.json or weights, or tensors have another shape.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: expected a folder of recorded tensors with config.json and weights_*")
    target = resolve_device(device)
    chosen = resolve_dtype(dtype, target)
    report = VerificationReport(device=str(target), dtype=str(chosen).removeprefix("torch."))
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for letter, values in json.loads((path / "config.json").read_text(encoding="utf-8")).items():
            tokenizer_weights = path / f"weights_{letter}_vae.safetensors"
            architecture = _Architecture(
                values=values,
                transformer_weights=_tensors(path / f"weights_{letter}_infinity.safetensors"),
                tokenizer_weights=_tensors(tokenizer_weights) if tokenizer_weights.is_file() else None,
                device=target,
                dtype=chosen,
            )
            for file, check in _files(path, letter):
                name = file.stem.removeprefix("case_")
                case = RecordedCase(
                    report=report, name=name, tensors=_tensors(file), narrow=chosen != torch.float32
                )
                check(architecture, case)
                case.note_the_rest()
    return report


_Check = Callable[[_Architecture, RecordedCase], None]


def _files(path: Path, letter: str) -> Iterator[tuple[Path, _Check]]:
    for file in sorted(path.glob(f"vae_{letter}_*.safetensors")):
        yield file, _check_tokenizer
    for file in sorted(path.glob(f"case_{letter}_*.safetensors")):
        if file.stem.endswith("_sampled"):
            yield file, _check_sampled
        elif file.stem.endswith("_ttsvar_forced"):
            yield file, _check_selections
        else:
            yield file, _check_forced


def _tensors(file: Path) -> Tensors:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; the folder is incomplete")
    return load_file(file)


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


def _swap_channels(image: Tensor) -> Tensor:
    """BGR to RGB."""
    return image.flip(-1)


def _without_time(grid: Tensor) -> Tensor:
    """Drop the time axis that some recorded maps have: [B, d, (1,) H, W]."""
    return grid[:, :, 0] if grid.ndim == 5 else grid


def _compact(per_text: Tensor, lens: Sequence[int]) -> Tensor:
    """Drop the padding of [S, P, T, C], stream by stream, as the official code packs texts."""
    return torch.cat([stream[i, :length] for stream in per_text for i, length in enumerate(lens)])


def _check_tokenizer(arch: _Architecture, case: RecordedCase) -> None:
    t, tokenizer = case.tensors, arch.tokenizer()
    schedule = _schedule(t)
    # The tokenizer's recorded schedule is that of its feature map, patchified or not.
    quantizer = Quantizer(codebook_dim=tokenizer.config.codebook_dim, schedule=schedule)
    tokens = functools.partial(_bit_tokens, quantizer)
    features = tokenizer.encode(t["image"].to(arch.device, torch.float32))
    case("enc_features", features, FEATURES)
    all_bits, z = quantizer.encode(features)
    case("z", z, FEATURES)
    case("decoded", tokenizer.decode(z), IMAGE)
    summed = quantizer.empty_map(1, arch.device)
    for index, bits in enumerate(all_bits):
        case(f"s{index}.bits", bits, EXACT, tokens)
        summed = quantizer.accumulate(summed, tokens(t[f"s{index}.bits"]).to(arch.device), index)
        if index + 1 < len(schedule):
            reduced = F.interpolate(summed, size=schedule[index + 1], mode="area")
            case(f"s{index}.var_input_area", reduced, FEATURES, _without_time)
    case("summed_from_bits", summed, FEATURES, _without_time)
    case("decoded_from_bits", tokenizer.decode(summed), IMAGE)


def _check_forced(arch: _Architecture, case: RecordedCase) -> None:
    t, schedule = case.tensors, _schedule(case.tensors)
    texts = RecordedTexts.unpack(
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
    case("decode_in", state.summed, FEATURES)
    _check_image(arch, model, state, case)
    again = model.replay(
        model.start(model.encode_text(names), range(len(names))), [bits.numpy() for bits in all_bits]
    )
    _check_equal_states("replay", again, state, case)


def _check_conditioning(
    transformer: InfinityTransformer, text: Tensor, lens: Tensor, case: RecordedCase
) -> None:
    both = torch.stack((text, transformer.unconditional_text(lens)[0]))
    normed = transformer.text_norm(both)
    case("text_normed", _compact(normed, lens.tolist()), FEATURES)
    case("ca_kv", _compact(transformer.text_proj_for_ca(normed), lens.tolist()), FEATURES)
    conditioning = transformer.condition(text, lens, guidance=True)
    case("sos_cond_BD", conditioning.pooled.flatten(0, 1), FEATURES)
    case("gss", conditioning.block_modulation.flatten(0, 1)[:, None], FEATURES)


def _check_steps(model: InfinityModel, text: Tensor, lens: Tensor, case: RecordedCase) -> None:
    """Feed the recorded bits; compare inside the transformer, and with teacher forcing."""
    transformer, quantizer = model.transformer, model.quantizer
    conditioning = transformer.condition(text, lens, guidance=True)
    cache, features, inputs, conditional = KVCache(), None, [], []
    summed = quantizer.empty_map(len(lens), model.device)
    seen: Tensors = {}
    for index in range(model.num_scales):
        logits, cache = transformer.scale_step(features, index, cache, conditioning, observe=seen.__setitem__)
        conditional.append(logits[0])
        case(f"s{index}.logits_cond", logits[0], LOGITS)
        case(f"s{index}.logits_uncond", logits[1], LOGITS)
        for key, got in seen.items():
            case(f"s{index}.{key}", got, HIDDEN)
        if index + 1 < model.num_scales:
            bits = _bit_tokens(quantizer, case.tensors[f"s{index}.bits"]).to(model.device)
            summed = quantizer.accumulate(summed, bits, index)
            features = quantizer.next_input(summed, index + 1)
            case(f"s{index}.next_in", features, FEATURES)
            inputs.append(features)
    case("kv.block0.k", seen["keys0"].flatten(0, 1), HIDDEN)
    case("kv.block0.v", seen["values0"].flatten(0, 1), HIDDEN)
    one_stream = transformer.condition(text, lens, guidance=False)
    together = transformer.forward_all(inputs, one_stream, model.num_scales)
    case.between("teacher_forced", together, torch.cat(conditional, dim=1), LOGITS)


def _force(model: InfinityModel, state: InfinityState, bits: Tensor, case: RecordedCase) -> InfinityState:
    """Advance one scale with recorded bits, comparing its logits and the new feature map."""
    index = state.scale_index
    given = bits.to(model.device)

    def choose(logits: Tensor) -> Tensor:
        case(f"s{index}.logits_cfg", logits.flatten(-2), LOGITS)
        return given

    state = model.advance_with(state, choose)
    case(f"s{index}.summed", state.summed, FEATURES, _without_time)
    return state


def _check_equal_states(name: str, got: InfinityState, expected: InfinityState, case: RecordedCase) -> None:
    case.between(f"{name}.summed", got.summed, expected.summed, EXACT)
    for index, (mine, theirs) in enumerate(zip(got.cache.layers, expected.cache.layers, strict=True)):
        case.between(f"{name}.keys{index}", mine.keys, theirs.keys, EXACT)
        case.between(f"{name}.values{index}", mine.values, theirs.values, EXACT)


def _check_image(arch: _Architecture, model: InfinityModel, state: InfinityState, case: RecordedCase) -> None:
    if arch.tokenizer_weights is not None and case.tensors.keys() & {"decoded", "image_bgr_u8"}:
        image = model.decode_float(state.summed)
        half = "decoded" in case.tensors and case.tensors["decoded"].dtype == torch.float16
        case("decoded", image, IMAGE_FP16 if half else IMAGE)
        case("image_bgr_u8", to_uint8(image), LEVELS, _swap_channels)


def multinomial_bits(logits: Tensor, *, generator: torch.Generator, top_p: float) -> Tensor:
    """Draw bits [B, n, D] from logits [B, n, D, 2] with the official calls, to compare with free runs."""
    gap = logits[..., 1] - logits[..., 0]
    certain = gap.abs() >= top_p_margin(top_p)
    rarer = torch.stack((gap > 0, gap <= 0), dim=-1)
    kept = logits.masked_fill(certain[..., None] & rarer, -torch.inf)
    probabilities = kept.softmax(dim=-1).reshape(-1, 2)
    drawn = torch.multinomial(probabilities, num_samples=1, replacement=True, generator=generator)
    return drawn.reshape(gap.shape).to(torch.uint8)


def _check_sampled(arch: _Architecture, case: RecordedCase) -> None:
    if arch.device.type != "cpu" or case.narrow:
        case.used.update(case.tensors)
        case.report.notes.append(
            f"{case.name}: not compared; its bits follow from a CPU generator and float32 logits"
        )
        return
    t = case.tensors
    texts = RecordedTexts.unpack(
        t["text.kv_compact"], t["text.lens"].tolist(), arch.values["model"]["text_maxlen"]
    )
    model = arch.model(texts, _schedule(t), 1.0, _settings(t))
    names = list(texts.features)
    state = model.start(model.encode_text(names), range(len(names)))
    generator = torch.Generator().manual_seed(SAMPLED_SEED)
    for index in range(model.num_scales):

        def choose(logits: Tensor, index: int = index) -> Tensor:
            case(f"s{index}.logits_cfg", logits.flatten(-2), LOGITS)
            return multinomial_bits(logits, generator=generator, top_p=SAMPLED_TOP_P)

        state = model.advance_with(state, choose)
        case(f"s{index}.bits", state.bits[index], EXACT, functools.partial(_bit_tokens, model.quantizer))
    _check_image(arch, model, state, case)


def _check_selections(arch: _Architecture, case: RecordedCase) -> None:
    t, schedule = case.tensors, _schedule(case.tensors)
    compact = t["text.kv_compact_one_prompt"]
    texts = RecordedTexts.unpack(compact, [len(compact)], arch.values["model"]["text_maxlen"])
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
