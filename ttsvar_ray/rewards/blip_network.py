"""The network of a BLIP reward: a vision transformer, a text transformer that looks at it, a linear head.

Shape legend: B rows, P patches + 1 (class token), T text tokens, V vision width, W text width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BlipTextModel, BlipVisionModel

from ttsvar_ray.rewards.blip_config import BlipRewardConfig
from ttsvar_ray.rewards.network_reward import in_whole_blocks

HEAD_INDICES = (0, 2, 4, 6, 7)
"""Places of the linear layers in the published head; the places between them held dropouts."""


class LinearHead(nn.Module):
    """Linear layers without activations between them, at the indices of the published checkpoint.

    The whole is one affine map; it is kept as layers so that published weights load unchanged.
    """

    def __init__(self, input_width: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        indices = HEAD_INDICES if len(widths) == len(HEAD_INDICES) else range(len(widths))
        self.layers = nn.ModuleDict()
        for index, width in zip(indices, widths, strict=True):
            self.layers[str(index)] = nn.Linear(input_width, width)
            input_width = width

    def forward(self, class_BW: Tensor) -> Tensor:
        """Map [B, W] to [B]."""
        for layer in self.layers.values():
            class_BW = layer(class_BW)
        return class_BW.squeeze(-1)


class BlipRewardNetwork(nn.Module):
    """Scores pixels against token ids; the affine map of the config is applied by `forward`."""

    def __init__(self, config: BlipRewardConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(config.transformers_vision())
        self.text = BlipTextModel(config.transformers_text(), add_pooling_layer=False)
        self.mlp = LinearHead(config.text.hidden_size, config.head_widths)
        self.score_mean = config.score_mean
        self.score_std = config.score_std

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return [B, P, V]: the class token and then the patches, row by row, after the last norm."""
        hidden_BPV: Tensor = self.vision(pixel_values=pixels_BCHW).last_hidden_state
        return hidden_BPV

    def read_text(self, image_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return [B, T, W]: the text after looking at the image (all its tokens: no image mask)."""
        hidden_BTW: Tensor = self.text(
            input_ids=ids_BT, attention_mask=mask_BT, encoder_hidden_states=image_BPV
        ).last_hidden_state
        return hidden_BTW

    def forward(self, pixels_BCHW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the scores [B]."""
        text_BTW = self.read_text(self.encode_image(pixels_BCHW), ids_BT, mask_BT)
        return self.normalise(self.head(text_BTW))

    def head(self, text_BTW: Tensor) -> Tensor:
        """Return the raw head output [B] from the first token's state.

        The head sees one row per image, so it is computed in whole blocks of rows.
        """
        raw: Tensor = self.mlp(in_whole_blocks(text_BTW[:, 0]))
        return raw[: text_BTW.shape[0]]

    def normalise(self, raw: Tensor) -> Tensor:
        """Apply the config's affine map."""
        return (raw - self.score_mean) / self.score_std
