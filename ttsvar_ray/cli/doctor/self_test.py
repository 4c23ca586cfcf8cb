"""The built-in model draws one image: whatever is wrong with an installation shows here."""

from __future__ import annotations

import time

from ttsvar_ray.cli.doctor.finding import Finding, Mark

AREA = "built-in model"


def check_built_in_model() -> list[Finding]:
    """Load the built-in model with its reward and draw one image on the CPU, without Ray."""
    from ttsvar_ray.config import load_config
    from ttsvar_ray.coordination.settings import CoordinatorSettings
    from ttsvar_ray.engine.local import run_local
    from ttsvar_ray.job.build import build_engine
    from ttsvar_ray.job.resolved import resolve
    from ttsvar_ray.results import PromptFailure
    from ttsvar_ray.types import Prompt

    started = time.monotonic()
    config = load_config(None, ["model.device=cpu", "strategy.name=raw"], needs_files=False)
    job = resolve(config)
    prompt = Prompt(row=0, prompt_id="doctor", ordinal=0, text="a red ring")
    (result,) = run_local(
        [prompt],
        plan=job.plan,
        engines=[build_engine(job)],
        run_seed=config.seed,
        settings=CoordinatorSettings(),
    )
    if isinstance(result, PromptFailure):
        return [Finding(area=AREA, name="shapes", mark=Mark.BROKEN, text=result.errors[-1])]
    image = result.images[0].image
    text = f"drew {image.width}x{image.height} pixels in {time.monotonic() - started:.1f} s, loading included"
    return [Finding(area=AREA, name="shapes", mark=Mark.OK, text=text)]
