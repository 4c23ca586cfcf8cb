"""Scores of the original image-reward package, as JSON; run by the interpreter of an environment that has it.

`PYTHON tests/support/reference_scores.py FOLDER IMAGE...` where FOLDER holds ImageReward.pt (of any size),
med_config.json, vocab.txt and texts.json (a list). Nothing of this project is imported. The package builds
its networks at full size, with a hub's tokenizer: only the sizes and the vocabulary's place are replaced.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BertTokenizer

REDUCED_HEAD_WIDTH, PUBLISHED_HEAD_WIDTH = 16, 64
PUBLISHED_VISION_WIDTH = 1024


def load(folder: Path) -> Any:
    """Return the package's own ImageReward with the folder's weights."""
    reward = importlib.import_module("ImageReward.ImageReward")
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    blip = importlib.import_module("ImageReward.models.BLIP.blip")
    weights = torch.load(folder / "ImageReward.pt", map_location="cpu", weights_only=True)
    width, _, patch, _ = weights["blip.visual_encoder.patch_embed.proj.weight"].shape
    depth = len({key.split(".")[3] for key in weights if key.startswith("blip.visual_encoder.blocks.")})
    head_width = PUBLISHED_HEAD_WIDTH if width == PUBLISHED_VISION_WIDTH else REDUCED_HEAD_WIDTH

    def create_vit(_name: str, image_size: int, *_: Any) -> tuple:
        heads = width // head_width
        network = blip.VisionTransformer(
            img_size=image_size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads
        )
        return network, width

    own_mlp, text_width = reward.MLP, weights["mlp.layers.0.weight"].shape[1]
    pretrain.create_vit = create_vit
    reward.MLP = lambda _width: own_mlp(text_width)
    BertTokenizer.from_pretrained = classmethod(lambda cls, *_, **__: cls(str(folder / "vocab.txt")))
    model = reward.ImageReward(med_config=str(folder / "med_config.json"), device="cpu")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing, missing
    assert set(unexpected) <= {"blip.text_encoder.embeddings.position_ids"}, unexpected
    return model.eval()


def main() -> None:
    """Print scores [texts][images], one by one and as the package ranks a list."""
    torch.set_num_threads(1)
    folder, paths = Path(sys.argv[1]), sys.argv[2:]
    texts = json.loads((folder / "texts.json").read_text())
    model = load(folder)
    with torch.no_grad():
        one_by_one = [[model.score(text, Image.open(path)) for path in paths] for text in texts]
        ranked = [model.inference_rank(text, list(paths)) for text in texts]
    result = {
        "score": one_by_one,
        "rank": [rank for rank, _ in ranked],
        "rewards": [rewards for _, rewards in ranked],
        "versions": {
            "torch": torch.__version__,
            "transformers": importlib.import_module("transformers").__version__,
        },
    }
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
