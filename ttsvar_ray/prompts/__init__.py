"""Prompt files to prompts with stable names."""

from __future__ import annotations

from ttsvar_ray.prompts.files import spool_standard_input
from ttsvar_ray.prompts.identity import prompt_id_of
from ttsvar_ray.prompts.read import PromptScan, bad_lines, read_prompts, scan_prompts
from ttsvar_ray.prompts.source import STANDARD_INPUT, BadLine, PromptFormat, PromptSource

__all__ = [
    "STANDARD_INPUT",
    "BadLine",
    "PromptFormat",
    "PromptScan",
    "PromptSource",
    "bad_lines",
    "prompt_id_of",
    "read_prompts",
    "scan_prompts",
    "spool_standard_input",
]
