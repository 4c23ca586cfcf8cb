"""CPU seconds of one Infinity image by part: text, transformer, decoding for selectors and in full.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu_model --rows 1 --rounds 3 [--output FILE.json]

Eight blocks of width 512, thirteen scales of half the published sides (512 x 512 pixels), random weights. Two
checkouts are compared by running them in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import T5Config

from benchmarks.machine import cpu_name
from benchmarks.random_networks import NetworkSizes, random_model
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.presets import PRESETS
from ttsvar_ray.models.infinity.resolutions import published_resolution

PUBLISHED = PRESETS["infinity-2b"]
PRESET = dataclasses.replace(
    PUBLISHED,
    name="infinity-8-blocks",
    depth=8,
    embed_dim=512,
    num_heads=8,
    block_chunks=2,
    tokenizer=dataclasses.replace(PUBLISHED.tokenizer, multipliers=(1, 1, 2, 2, 2), base_channels=32),
)
TEXT_ENCODER = T5Config(
    vocab_size=64,
    d_model=2048,
    d_kv=64,
    d_ff=1024,
    num_layers=2,
    num_heads=8,
    feed_forward_proj="gated-gelu",
)
TEXT = "a photo of a red bench and a blue bird on a tree near the lake"


def seconds_by_part(model: InfinityModel, rows: int) -> dict[str, float]:
    """Return the processor seconds of each part, for so many trajectories of one prompt."""
    rng = np.random.default_rng(0)
    marks = [time.process_time()]
    text = model.encode_text([TEXT])
    marks.append(time.process_time())
    state = model.start(text, [0] * rows)
    for height, width in model.scale_schedule:
        bits = height * width * model.bits_per_token
        state = model.advance(state, rng.random((rows, bits), dtype=np.float32))
    marks.append(time.process_time())
    model.decode(state, size="selector")
    marks.append(time.process_time())
    model.decode(state)
    marks.append(time.process_time())
    names = ("text", "transformer", "decode for selectors", "decode in full")
    return {name: round(b - a, 3) for name, a, b in zip(names, marks[:-1], marks[1:], strict=True)}


def main() -> None:
    """Measure, print one line a round, and write the rest to --output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    resolution = published_resolution("1M", 1.0)
    halved = tuple((max(1, height // 2), max(1, width // 2)) for height, width in resolution.schedule)
    model = random_model(
        NetworkSizes(preset=PRESET, text_encoder=TEXT_ENCODER),
        dataclasses.replace(resolution, schedule=halved),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    rounds = []
    for _ in range(options.rounds):
        rounds.append(seconds_by_part(model, options.rows))
        print(json.dumps(rounds[-1]), flush=True)
    if options.output is not None:
        result = {"rows": options.rows, "rounds": rounds, "processor": cpu_name(), "torch": torch.__version__}
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
