"""CPU seconds of a prompt by the engine, over those of the published loop, on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu_loop [--rounds 3] [--output FILE.json]

The model of `benchmarks.cpu_model`: Infinity with eight blocks of width 512, thirteen scales of half the
published sides (512 x 512 pixels), random weights, the engine's default settings for a CPU. Reward and
features are too small to count, so that what is compared is drawing and decoding. TTS-VAR with N=1 is
compared with the published TTS-VAR loop, one image with Infinity's own, which decodes once, at the end
(`benchmarks/published_loop.py`; it draws the engine's bits). Each round runs all of them in turn, each in a
process of its own, since the engine's keeps what it frees (`engine.device.keep_freed_memory`); `engine
without kept memory` says what that is worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.cpu_model import PRESET, TEXT, TEXT_ENCODER
from benchmarks.machine import record
from benchmarks.published_loop import Drawn, PublishedLoop
from benchmarks.random_networks import (
    NARROW_DINOV2,
    NARROW_REWARD,
    NetworkSizes,
    random_extractor,
    random_model,
    random_reward,
)
from ttsvar_ray.engine.device import keep_freed_memory
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import search_prompt
from ttsvar_ray.models.infinity.resolutions import Resolution, published_resolution
from ttsvar_ray.results import PromptResult
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Prompt

SIZES = NetworkSizes(preset=PRESET, text_encoder=TEXT_ENCODER, reward=NARROW_REWARD, extractor=NARROW_DINOV2)
PUBLISHED_LOOP, INFINITY_LOOP = "published TTS-VAR loop", "Infinity's own loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a prompt's images are drawn.

    Attributes:
        strategy: of the plan, with N=1.
        is_engine: False: the published loop.
        selector_decode: of the engine.
        keeps_memory: as the engine's process does.
    """

    strategy: str = "tts-var"
    is_engine: bool = True
    selector_decode: str = "full"
    keeps_memory: bool = True


WAYS = {
    PUBLISHED_LOOP: Way(is_engine=False),
    "TTS-VAR N=1, full decodes": Way(),
    "TTS-VAR N=1, full decodes, engine without kept memory": Way(keeps_memory=False),
    "TTS-VAR N=1, selector decodes": Way(selector_decode="selector"),
    INFINITY_LOOP: Way(strategy="raw", is_engine=False),
    "raw": Way(strategy="raw"),
}


def half_sides() -> Resolution:
    """Return the published scales of 1M with half the sides."""
    resolution = published_resolution("1M", 1.0)
    halved = tuple((max(1, height // 2), max(1, width // 2)) for height, width in resolution.schedule)
    return dataclasses.replace(resolution, schedule=halved)


def outcome(name: str, sizes: NetworkSizes, resolution: Resolution) -> Callable[[], Any]:
    """Return the function that draws one prompt's images in the way of that name."""
    device = torch.device("cpu")
    model = random_model(sizes, resolution, device=device, dtype=torch.float32)
    judges: dict[str, Any] = {
        "reward": random_reward(sizes, device=device),
        "extractor": random_extractor(sizes, device=device),
    }
    way = WAYS[name]
    plan = compile_plan(scale_schedule=model.scale_schedule, strategy=way.strategy, n=1)
    prompt = Prompt(row=0, prompt_id="p", ordinal=0, text=TEXT)
    if not way.is_engine:
        loop = PublishedLoop(
            model=model, plan=plan, run_seed=0, decodes_every_scale=way.strategy != "raw", **judges
        )
        return lambda: loop.run(prompt)
    if way.keeps_memory:
        keep_freed_memory()
    settings = EngineSettings(selector_decode=way.selector_decode)
    engine = Engine(model=model, plan=plan, run_seed=0, settings=settings, **judges)
    return lambda: search_prompt(prompt, plan=plan, engine=engine, run_seed=0)


def seconds_of(
    name: str, sizes: NetworkSizes = SIZES, resolution: Resolution | None = None
) -> dict[str, Any]:
    """Run one way once; return CPU seconds of this process and the most memory that it had.

    Raises:
        RuntimeError: the prompt failed.
    """
    run = outcome(name, sizes, resolution or half_sides())
    before = os.times()
    drawn = run()
    after = os.times()
    if not isinstance(drawn, PromptResult | Drawn):
        raise RuntimeError(f"{name}: {drawn}")
    return {
        "seconds": round(after.user + after.system - before.user - before.system, 2),
        "of these in the kernel": round(after.system - before.system, 2),
        "peak megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure, print a line a round, and write the rest to --output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--way", choices=WAYS, help="run this one alone, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.way:
        print(json.dumps(seconds_of(options.way)))
        return
    instructions = torch.backends.cpu.get_cpu_capability()
    machine = record("torch", "numpy", "transformers") | {"instructions": instructions}
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        rounds.append({})
        for name in WAYS:
            command = [sys.executable, "-m", "benchmarks.cpu_loop", "--way", name]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rounds[-1][name] = json.loads(told.splitlines()[-1])
        print(json.dumps({name: found["seconds"] for name, found in rounds[-1].items()}), flush=True)
    result = {
        "what": "CPU seconds of one prompt, one thread, random weights, judges too small to count",
        "times as quick as the published loop": times_as_quick(rounds),
        "rounds": rounds,
        "machine": machine,
    }
    print(json.dumps(result["times as quick as the published loop"], indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def times_as_quick(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return what the published loop takes over what the engine does: each round's and their median."""
    found = {}
    for name, way in WAYS.items():
        other = INFINITY_LOOP if way.strategy == "raw" else PUBLISHED_LOOP
        if way.is_engine:
            times = [round(one[other]["seconds"] / one[name]["seconds"], 2) for one in rounds]
            found[name] = {"median": round(median(times), 2), "rounds": times}
    return found


if __name__ == "__main__":
    main()
