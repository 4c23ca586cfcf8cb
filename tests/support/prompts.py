"""Prompts for tests."""

from __future__ import annotations

from ttsvar_ray.types import Prompt


def make_prompts(count: int, *, prefix: str = "a red circle") -> list[Prompt]:
    """Return `count` distinct prompts in row order."""
    return [
        Prompt(row=row, prompt_id=f"p{row:04d}", ordinal=0, text=f"{prefix} number {row}")
        for row in range(count)
    ]
