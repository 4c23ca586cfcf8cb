"""CLIP as rewards use it: its tokens, and checkpoints with open_clip's key names (HPSv2).

The two differ in three things beside names: open_clip fuses query, key and value; it stores its two
projections transposed; and its sizes stand in a JSON file of its own.
"""

from __future__ import annotations

import enum
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.vision.checkpoints import KeyTable, build_pretrained, from_folder, read_published, rename_keys

CONTEXT_LENGTH = 77
START_ID = 49406
END_ID = 49407


class TextCleaning(str, enum.Enum):
    """What happens to a text before it is split into tokens."""

    CLIP = "clip"
    """Mended by ftfy, unescaped from HTML twice: OpenAI's CLIP, open_clip, HPS, ImageReward's CLIP score."""
    TRANSFORMERS = "transformers"
    """Left as it is: what transformers' processor does, and so PickScore."""


class ClipTokens(Protocol):
    """Turns texts into ids."""

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Return exactly 77 ids, zero after the end token, and whether the text was cut."""
        ...


class _ClipTokenizer:
    """Lower-cased byte-pair tokens between the start and the end token (`ClipTokens`).

    A text of more than 75 tokens loses its end; the end token stays. Padding is zero as in open_clip:
    attention is causal and the end token's state is what is read, so nothing depends on it.
    """

    def __init__(self, tokenizer: CLIPTokenizer, cleaning: TextCleaning) -> None:
        self._tokenizer = tokenizer
        self._cleaning = cleaning

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Return exactly 77 ids, zero after the end token, and whether the text was cut."""
        clean = _mend(text) if self._cleaning is TextCleaning.CLIP else text
        ids = self._tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]
        most = CONTEXT_LENGTH - 2
        kept = [START_ID, *ids[:most], END_ID]
        return kept + [0] * (CONTEXT_LENGTH - len(kept)), len(ids) > most


def load_tokenizer(folder: Path, cleaning: TextCleaning) -> _ClipTokenizer:
    """Load CLIP's tokenizer from tokenizer.json, or vocab.json and merges.txt; never from a hub.

    Raises:
        CheckpointError: the files are missing, or are not CLIP's.
        ConfigurationError: the cleaning needs ftfy, which is not installed.
    """
    pair = ("vocab.json", "merges.txt")
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in pair):
        raise CheckpointError(
            f"{folder}: expected CLIP's tokenizer.json, or vocab.json and merges.txt, beside the weights; "
            "copy them from openai/clip-vit-large-patch14 (every CLIP has the same)"
        )
    if cleaning is TextCleaning.CLIP:
        _mend("")
    tokenizer = from_folder(CLIPTokenizer, folder)
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if found != (START_ID, END_ID):
        raise CheckpointError(
            f"{folder}: expected CLIP's tokenizer (start, end {(START_ID, END_ID)}), got {found}"
        )
    return _ClipTokenizer(tokenizer, cleaning)


def _mend(text: str) -> str:
    """Return the text as OpenAI's CLIP cleans it; its tokenizer lower-cases."""
    try:
        import ftfy
    except ImportError as error:
        raise ConfigurationError(
            "this reward mends texts with ftfy, as published, and ftfy is not installed; "
            "pip install 'ttsvar-ray[rewards]'"
        ) from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _tower(prefix: str, name: str) -> KeyTable:
    """Return the rows of one tower's blocks."""
    block, own = prefix + r"transformer\.resblocks\.(\d+)\.", name + r".encoder.layers.\1."
    return (
        (block + r"ln_([12])\.(\w+)", own + r"layer_norm\2.\3"),
        (block + r"attn\.in_proj_(weight|bias)", own + r"self_attn.{part}_proj.\2"),
        (block + r"attn\.out_proj\.(\w+)", own + r"self_attn.out_proj.\2"),
        (block + r"mlp\.c_fc\.(\w+)", own + r"mlp.fc1.\2"),
        (block + r"mlp\.c_proj\.(\w+)", own + r"mlp.fc2.\2"),
    )


OPEN_CLIP_KEYS: KeyTable = (
    *_tower(r"visual\.", "vision_model"),
    *_tower("", "text_model"),
    (r"logit_scale", "logit_scale"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"ln_final\.(\w+)", r"text_model.final_layer_norm.\1"),
    (r"text_projection", "text_projection.weight"),
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    # transformers' own spelling.
    (r"visual\.ln_pre\.(\w+)", r"vision_model.pre_layrnorm.\1"),
    (r"visual\.ln_post\.(\w+)", r"vision_model.post_layernorm.\1"),
    (r"visual\.proj", "visual_projection.weight"),
)
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenClipSizes:
    """Sizes of a CLIP as open_clip's model files state them; widths of the two MLPs are four times theirs."""

    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_head_width: int
    text_width: int
    text_layers: int
    text_heads: int
    vocab_size: int
    quick_gelu: bool = False

    def transformers(self) -> CLIPConfig:
        """Return the same as transformers wants it."""
        activation = "quick_gelu" if self.quick_gelu else "gelu"
        return CLIPConfig(
            projection_dim=self.embed_dim,
            vision_config={
                "hidden_size": self.vision_width,
                "intermediate_size": 4 * self.vision_width,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_width // self.vision_head_width,
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "hidden_act": activation,
            },
            text_config={
                "hidden_size": self.text_width,
                "intermediate_size": 4 * self.text_width,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": self.text_heads,
                "vocab_size": self.vocab_size,
                "max_position_embeddings": CONTEXT_LENGTH,
                "hidden_act": activation,
                "bos_token_id": START_ID,
                # transformers reads the state of the first token with this id.
                "eos_token_id": END_ID,
            },
        )


VIT_H_14 = _OpenClipSizes(
    embed_dim=1024,
    image_size=224,
    patch_size=14,
    vision_width=1280,
    vision_layers=32,
    vision_head_width=80,
    text_width=1024,
    text_layers=24,
    text_heads=16,
    vocab_size=49408,
)
"""The network of HPSv2, HPSv2.1 and PickScore: 986.1 M parameters."""


def read_sizes(folder: Path) -> _OpenClipSizes:
    """Return the sizes in a folder's `ViT-*.json` (open_clip's model file); without one, ViT-H-14's.

    Raises:
        CheckpointError: several such files, or one that does not state what it must.
    """
    files = sorted(folder.glob("ViT-*.json"))
    if not files:
        return VIT_H_14
    if len(files) > 1:
        raise CheckpointError(f"{folder}: expected at most one ViT-*.json, got {[f.name for f in files]}")
    content: Any = json.loads(files[0].read_text())
    try:
        vision, text = content["vision_cfg"], content["text_cfg"]
        return _OpenClipSizes(
            embed_dim=content["embed_dim"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vision_width=vision["width"],
            vision_layers=vision["layers"],
            vision_head_width=vision.get("head_width", 64),
            text_width=text["width"],
            text_layers=text["layers"],
            text_heads=text["heads"],
            vocab_size=text["vocab_size"],
            quick_gelu=content.get("quick_gelu", False),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{files[0]}: expected an open_clip model file; missing or wrong: {error}"
        ) from error


def load_open_clip(path: Path, sizes: _OpenClipSizes) -> CLIPModel:
    """Load a checkpoint `{"state_dict": ...}` with open_clip's names, in float32 on the CPU.

    Args:
        path: the file; it is read weights-only, so that no code in it is run.
        sizes: of the network; the file does not tell its numbers of heads.

    Raises:
        CheckpointError: no such checkpoint, or weights that do not fit the sizes.
    """
    published = read_published(path, expected="a checkpoint of open_clip", inside="state_dict")
    weights = rename_keys(published, OPEN_CLIP_KEYS, source=str(path))
    weights |= {key: weights[key].T for key in _TRANSPOSED if key in weights}
    model: CLIPModel = build_pretrained(CLIPModel, sizes.transformers(), weights, source=str(path))
    return model
