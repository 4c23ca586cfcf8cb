"""A job of the tiny model as a process of its own, so that it can be killed: `python -m` this module."""

from __future__ import annotations

import argparse
import sys

from tests.support.plans import tts_var_plan
from tests.support.tiny_engine import TinyEngineBuilder
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.errors import InterruptedRunError, RunFailedError
from ttsvar_ray.job.runnable import JobParts

SEED = 5
TO_BE_CONTINUED = 75


def main() -> int:
    """Run the job; 0 is done, 75 stopped early in good order."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--workers-per-cell", type=int, required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rows-per-part", type=int, default=10)
    parser.add_argument("--pause", type=float, required=True)
    parser.add_argument("--noisy", action="store_true")
    arguments = parser.parse_args()
    config = JobConfig.model_validate(
        {
            "prompts": {"path": arguments.prompts},
            "output": {"path": arguments.output, "rows_per_part": arguments.rows_per_part},
            "cluster": {
                "workers": arguments.workers,
                "workers_per_cell": arguments.workers_per_cell,
                "address": arguments.address,
                # Every prompt may be near many deaths that are not its fault.
                "max_attempts": 50,
            },
            "model": {"device": "cpu"},
            "seed": SEED,
        }
    )
    builder = TinyEngineBuilder(
        seed=SEED, rows=arguments.rows, pause_s=arguments.pause, noisy=arguments.noisy
    )
    try:
        summary = run_job(config, parts=JobParts(plan=tts_var_plan(), build_engine=builder))
    except (InterruptedRunError, RunFailedError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return TO_BE_CONTINUED
    print(f"{summary.prompts} prompts, {summary.failed} failed, {len(summary.notices)} notices", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
