"""The published addition to prompts about people."""

from __future__ import annotations

PEOPLE_WORDS = (
    *("man", "woman", "men", "women", "boy", "girl", "child", "person", "human", "adult", "teenager"),
    *("employee", "employer", "worker", "mother", "father", "sister", "brother"),
    *("grandmother", "grandfather", "son", "daughter"),
)
"""Looked for anywhere in a prompt, as published: "a German season" has two of them."""

ADDITION = ". very smooth faces, good looking faces, face to the camera, perfect facial features"


def with_positive_prompt(prompt: str) -> str:
    """Return a prompt with the published addition if it speaks of people, by any of `PEOPLE_WORDS`."""
    return prompt + ADDITION if any(word in prompt for word in PEOPLE_WORDS) else prompt
