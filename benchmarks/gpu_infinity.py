"""A published model at full size with random weights on a GPU: seconds, memory against the plan, rows.

    python -m benchmarks.gpu_infinity --model infinity-2b --resolution 1M --n 1 2 --output FILE.json

Speed and memory do not depend on what weights hold, so that this needs no download. Measured are

* prompts through the engine, one after another and many together (`CASES`): seconds a prompt, the most bytes
  allocated, and these over what `ttsvar-ray plan` says. The final image is written as JPEG, a few
  milliseconds: what other files take is among the parts;
* with `--baseline`, the published loop (`benchmarks/published_loop.py`) on the same networks and prompts,
  with N = 1;
* every part on its own: each scale for 1, 8 and 32 trajectories, decoder, rewards, features, image file;
* how far a trajectory's logits depend on the other rows of its batch, and how many bits that would flip;
* whether `engine.deterministic` makes that nothing: the bytes of a prompt alone, beside others, and sharded
  over two engines that rebuild each other's survivors, and what its filled-up passes cost.

The file names the device, the versions and the commit, and is written anew after each measurement. With
`--quick` the last two are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import record
from benchmarks.parts import DECODED, REPEATS, ROWS, measure_parts
from benchmarks.published_loop import PublishedLoop
from benchmarks.random_networks import NetworkSizes, random_backbone, random_model, random_reward
from benchmarks.row_dependence import TEXTS, deterministic, execution_of, row_dependence
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.features.patch_features import principal_component_features
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.memory_plan import memory_plan
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.kernels.operations import uses_fused
from ttsvar_ray.models.infinity.presets import find_preset
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.protocol import Execution
from ttsvar_ray.models.registry import resolve_device, resolve_dtype
from ttsvar_ray.results import PromptResult
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.types import Precision, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How prompts are run.

    Attributes:
        n: N of TTS-VAR; None draws one image and judges nothing.
        selector_decode: "full" or "selector".
        precision: of reward and features.
        together: prompts under way at a time.
        cuda_graphs: of the engine (`engine.cuda_graphs`).
    """

    n: int | None = 1
    selector_decode: str = "full"
    precision: Precision = Precision.TF32
    together: int = 1
    cuda_graphs: str = "auto"

    @property
    def micro_batch_rows(self) -> int:
        """Trajectories of a pass: a population, or those of eight prompts."""
        return 8 * (self.n or 1) * min(self.together, 8)


CASES = {
    "raw": Case(n=None),
    "TTS-VAR N=1": Case(),
    "TTS-VAR N=1, float32 judges": Case(precision=Precision.FLOAT32),
    "TTS-VAR N=1, no graphs": Case(cuda_graphs="never"),
    "TTS-VAR N=2": Case(n=2),
    "TTS-VAR N=1, selector decodes": Case(selector_decode="selector"),
    "TTS-VAR N=1, selector decodes, 16 prompts": Case(selector_decode="selector", together=16),
    "TTS-VAR N=1, 16 prompts": Case(together=16),
    "raw, 16 prompts": Case(n=None, together=16),
}


def job(model: str, resolution: str, dtype: str, case: Case) -> JobConfig:
    """Return the settings whose plan and memory are measured."""
    return load_config(
        None,
        [
            f"model.name={model}",
            f"model.resolution={resolution}",
            f"model.dtype={dtype}",
            *(["strategy.name=raw", "reward.name=constant"] if case.n is None else [f"strategy.n={case.n}"]),
            f"engine.micro_batch_rows={case.micro_batch_rows}",
            f"engine.selector_decode={case.selector_decode}",
            f"reward.dtype={case.precision.value}",
            f"features.dtype={case.precision.value}",
            f"engine.cuda_graphs={case.cuda_graphs}",
        ],
        needs_files=False,
    )


def measure(
    sizes: NetworkSizes,
    *,
    resolution: str,
    cases: Mapping[str, Case],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int = 3,
    warm_up: int = 3,
    baseline: int = 0,
    quick: bool = False,
    kernels: str = "auto",
    rows: Sequence[int] = ROWS,
    decoded: Mapping[str, Sequence[int]] = DECODED,
    part_repeats: int = REPEATS,
    on_progress: Callable[[str, dict[str, Any]], None] = lambda name, result: None,
) -> dict[str, Any]:
    """Run everything and return what the JSON file holds.

    Args:
        sizes, resolution, device, dtype: of the networks.
        cases: how prompts are run, by name.
        repeats, warm_up: how often each is timed, after how many times that it is not: a pass is recorded
            when it is seen a second time. Many prompts together are timed once, after twice.
        baseline: prompts of the published loop, after one that is not timed where there are several.
        quick: leave out how rows depend on their batch, and the deterministic passes.
        part_repeats: how often each part is timed; 0 leaves them out.
        kernels: of the engine's model (`engine.kernels`); the published loop always has plain ones.
        rows, decoded: of the parts (`benchmarks/parts.py`).
        on_progress: told what is done, and everything measured so far.
    """
    name = str(dtype).removeprefix("torch.")
    model = random_model(sizes, published_resolution(resolution), device=device, dtype=dtype)
    # One of each, as a worker has: of a second one the plan of the memory knows nothing.
    reward, backbone = random_reward(sizes, device=device), random_backbone(sizes, device=device)
    extractor = principal_component_features(backbone, ComponentSign.DETERMINISTIC)

    def choose_precision(precision: Precision) -> None:
        assert precision in (Precision.FLOAT32, Precision.TF32), "of weights in float32"
        reward.tf32 = backbone.tf32 = precision is Precision.TF32

    result: dict[str, Any] = {
        "what": "random weights: speed and memory, not quality",
        "model": sizes.preset.name,
        "resolution": resolution,
        "dtype": name,
        "kernels": "fused" if uses_fused(kernels, device.type) else "plain",
        "hardware": hardware(device),
        "machine": record("torch", "numpy", "pillow", "transformers"),
        "published_loop": [],
        "runs": {},
    }
    searching = Case()
    choose_precision(Precision.FLOAT32)
    if baseline:
        # First of all, since fused kernels, once chosen, leave the decoder in another dtype.
        model.set_execution(Execution(kernels="plain", cuda_graphs="never"))
        plan = resolve(job(sizes.preset.name, resolution, name, searching)).plan
        loop = PublishedLoop(model=model, reward=reward, extractor=extractor, plan=plan, run_seed=0)
        official = [_published(loop, row) for row in range(baseline)][min(baseline - 1, 1) :]
        result["published_loop"] = official
        on_progress("published loop", result)
    for title, case in cases.items():
        resolved = resolve(job(sizes.preset.name, resolution, name, case))
        config, plan = resolved.config, resolved.plan
        model.set_execution(execution_of(plan, kernels, cuda_graphs=case.cuda_graphs))
        choose_precision(case.precision)
        engine = Engine(
            model=model,
            reward=build_reward("constant") if case.n is None else reward,
            extractor=extractor,
            plan=plan,
            run_seed=0,
            settings=EngineSettings(
                micro_batch_rows=config.engine.micro_batch_rows,
                selector_decode=case.selector_decode,
                image_format="jpeg",
                keep="best",
                draw_threads=8,
            ),
        )
        networks = job_networks(config, resolved.description, plan, on_gpu=device.type == "cuda")
        planned = memory_plan(networks, plan, selector_decode=case.selector_decode)
        # Judges that a case does not use stay where they are.
        unused = (
            0 if case.n else sum(_weight_bytes(network) for network in (reward.network, backbone.network))
        )
        many = case.together > 1
        before, counted = (min(warm_up, 2), 1) if many else (warm_up, repeats)
        timed = [
            _prompts(engine, case.together, first=turn * case.together) for turn in range(before + counted)
        ][before:]
        peak = max(max(run["peak_bytes"] for run in timed) - unused, 0)
        run = {
            "seconds_per_prompt": [round(run["seconds"] / case.together, 4) for run in timed],
            "prompts_together": case.together,
            "micro_batch_rows": case.micro_batch_rows,
            "drawn_images": plan.survivors_after[-1],
            "kept_images": sum(run["images"] for run in timed) // (len(timed) * case.together),
            "peak_bytes": peak,
            # None of them: graphs are off, or the log says why a recording failed.
            "passes_played_from_recordings": 0 if model.recorded is None else model.recorded.played,
        }
        if not many:
            run |= {
                "planned_peak_bytes": planned.peak_bytes,
                "peak_over_plan": round(peak / planned.peak_bytes, 4) if peak else None,
            }
        result["runs"][title] = run
        on_progress(title, result)
        del engine
    # As a search runs it: up to the last scale at once, many rows would take more memory than a GPU has.
    searched = resolve(job(sizes.preset.name, resolution, name, searching)).plan
    model.set_execution(execution_of(searched, kernels))
    choose_precision(searching.precision)
    # Before deterministic kernels are chosen, which stay chosen.
    if part_repeats:
        parts = measure_parts(
            model, reward, extractor, TEXTS[0], rows=rows, decoded=decoded, repeats=part_repeats
        )
        result["parts"] = {"precision of reward and features": searching.precision.value} | parts
        on_progress("parts", result)
    if not quick:
        settings = job(sizes.preset.name, resolution, name, Case(precision=Precision.FLOAT32))
        result["rows"] = row_dependence(model)
        on_progress("rows", result)
        choose_precision(Precision.FLOAT32)
        result["deterministic"] = deterministic(model, reward, extractor, settings, kernels=kernels)
    return result


def _weight_bytes(network: nn.Module) -> int:
    return sum(weight.nbytes for weight in (*network.parameters(), *network.buffers()))


def _prompts(engine: Engine, count: int, *, first: int) -> dict[str, Any]:
    """Run prompts together; return seconds, most bytes and images of all."""
    prompts = [
        Prompt(row=row, prompt_id=f"p-{row}", ordinal=0, text=TEXTS[row % len(TEXTS)])
        for row in range(first, first + count)
    ]
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    settings = CoordinatorSettings()
    outcomes = list(run_local(prompts, plan=engine.plan, engines=[engine], run_seed=0, settings=settings))
    seconds = time.perf_counter() - start
    assert all(isinstance(outcome, PromptResult) for outcome in outcomes), outcomes
    return {
        "seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
        "images": sum(len(outcome.images) for outcome in outcomes if isinstance(outcome, PromptResult)),
    }


def _published(loop: PublishedLoop, row: int) -> dict[str, Any]:
    """Return seconds of the published loop for a prompt that the engine is given, too."""
    prompt = Prompt(row=row, prompt_id=f"p-{row}", ordinal=0, text=TEXTS[row % len(TEXTS)])
    start = time.perf_counter()
    drawn = loop.run(prompt)
    return {
        "seconds": round(time.perf_counter() - start, 4),
        "decoded_images": drawn.decodes,
        "seconds_by_part": {name: round(value, 4) for name, value in drawn.seconds.items()},
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the names of what this ran on."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device.type),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
        }
    else:
        found["name"] = platform.processor() or platform.machine()
    return found


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description="Random weights at full size: speed, memory, rows.")
    parser.add_argument("--model", default="infinity-2b", help="a published Infinity")
    parser.add_argument("--resolution", default="1M", help="0.06M, 0.25M, 0.60M or 1M")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES), help="how to run")
    parser.add_argument("--baseline", action="store_true", help="also run the published loop")
    parser.add_argument("--quick", action="store_true", help="seconds and memory only")
    parser.add_argument(
        "--parts", type=int, default=REPEATS, help="how often each part is timed; 0: not at all"
    )
    parser.add_argument("--kernels", choices=("auto", "plain", "fused"), default="auto")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--dtype", default="auto", help="of the blocks")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    def write(done: str, result: dict[str, Any]) -> None:
        """Keep what there is: a later measurement may not fit the device, or its time."""
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        print(done, json.dumps(result["runs"].get(done, {})), flush=True)

    result = measure(
        NetworkSizes(preset=find_preset(arguments.model)),
        resolution=arguments.resolution,
        cases={name: CASES[name] for name in arguments.cases},
        device=device,
        dtype=resolve_dtype(arguments.dtype, device),
        baseline=3 if arguments.baseline else 0,
        quick=arguments.quick,
        kernels=arguments.kernels,
        part_repeats=arguments.parts,
        on_progress=write,
    )
    write("all", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
