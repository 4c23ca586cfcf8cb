"""The published rewards and feature networks: which files each needs, and the commands that fetch them."""

from __future__ import annotations

from dataclasses import dataclass

_CLIP = "openai/clip-vit-large-patch14"
_CLIP_TOKENIZER = ("vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class Fetch:
    """Files of one repository of the hub, or one file at a URL.

    Attributes:
        source: "owner/name" of the hub, or the URL.
        files: in the folder afterwards.
        folder: below the judge's own; "" is that itself.
    """

    source: str
    files: tuple[str, ...]
    folder: str = ""

    def command(self, target: str) -> str:
        """Return the shell command that puts the files below `target`."""
        folder = f"{target}/{self.folder}".rstrip("/")
        if self.source.startswith("https://"):
            return f"curl -L --create-dirs -o '{folder}/{self.files[0]}' '{self.source}'"
        return f"hf download {self.source} {' '.join(self.files)} --local-dir {folder}"


@dataclass(frozen=True, slots=True)
class Judge:
    """A reward or a feature network.

    Attributes:
        name: in the settings; also of its folder.
        setting: where its folder, or its first file, is named in a job.
        fetches: what it needs.
        note: what somebody should know before fetching it.
    """

    name: str
    setting: str
    fetches: tuple[Fetch, ...]
    note: str = ""


JUDGES: tuple[Judge, ...] = (
    Judge(
        "image-reward",
        "reward.path",
        (
            Fetch("THUDM/ImageReward", ("ImageReward.pt",)),
            Fetch("google-bert/bert-base-uncased", ("vocab.txt",)),
        ),
    ),
    Judge(
        "dinov2",
        "features.backbone",
        (Fetch("facebook/dinov2-with-registers-large", ("config.json", "model.safetensors")),),
    ),
    Judge(
        "hps-v2.1",
        "reward.path",
        (Fetch("xswu/HPSv2", ("HPS_v2.1_compressed.pt",)), Fetch(_CLIP, _CLIP_TOKENIZER)),
    ),
    Judge(
        "hps-v2.0",
        "reward.path",
        (Fetch("xswu/HPSv2", ("HPS_v2_compressed.pt",)), Fetch(_CLIP, _CLIP_TOKENIZER)),
    ),
    Judge(
        "pick-score",
        "reward.path",
        (
            Fetch("yuvalkirstain/PickScore_v1", ("config.json", "model.safetensors")),
            Fetch(_CLIP, _CLIP_TOKENIZER),
        ),
    ),
    Judge(
        "clip-score", "reward.path", (Fetch(_CLIP, ("config.json", "model.safetensors", *_CLIP_TOKENIZER)),)
    ),
    Judge(
        "aesthetic-v2.5",
        "reward.path",
        (
            Fetch(
                "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/"
                "aesthetic_predictor_v2_5.pth",
                ("aesthetic_predictor_v2_5.pth",),
            ),
            Fetch("google/siglip-so400m-patch14-384", ("config.json", "model.safetensors"), "siglip"),
        ),
        note="its head is AGPL-3.0",
    ),
    Judge(
        "laion-aesthetic",
        "reward.path",
        (
            Fetch(
                "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
                "sac+logos+ava1-l14-linearMSE.pth",
                ("sac+logos+ava1-l14-linearMSE.pth",),
            ),
            Fetch(_CLIP, ("config.json", "model.safetensors"), "clip"),
        ),
    ),
    Judge(
        "inception",
        "features.backbone",
        (
            Fetch(
                "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
                ("inception_v3_google-0cc3c7bd.pth",),
            ),
        ),
    ),
)
"""What each loader reads. The commands follow the publishers' pages; file names were not checked against
the hub from here."""
