"""What the model reads in place of a prompt: a template, or a function of the user's own. Never hidden.

The reward, the id and the random streams stay the prompt's own; the rows say what the model read
(`prompt_used`), and a function's source is recorded with the run.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ttsvar_ray.errors import ConfigurationError, brief
from ttsvar_ray.own_code import OwnCode, load_own
from ttsvar_ray.types import Prompt

SETTING = "prompts.rewrite"
PROMPT = "prompt"

Rewriter = Callable[[str, Mapping[str, Any]], str]
"""From a prompt and the caller's columns that go through to what the model reads."""


class RewriteError(Exception):
    """Why one prompt could not be rewritten."""


def own_rewriter(setting: str | None) -> OwnCode | None:
    """Return the user's own function behind the setting, or None where it is a template or nothing.

    Raises:
        ConfigurationError: an import path that leads to no function.
    """
    if setting is None or "{" in setting:
        return None
    own = load_own(setting, setting=SETTING)
    if not callable(own.object):
        raise ConfigurationError(
            f"{SETTING}: expected a function (prompt) -> text, got {setting}, a {type(own.object).__name__}"
        )
    return own


@functools.lru_cache(maxsize=8)
def rewriter_of(setting: str) -> Rewriter:
    """Return what rewrites a prompt; it raises `RewriteError` for one that it cannot.

    Args:
        setting: a template such as `{prompt}, studio light`, whose names are the prompt and the caller's
            columns, or `package.module:function`, which is called with the prompt alone.

    Raises:
        ConfigurationError: neither.
    """
    own = own_rewriter(setting)
    if own is not None:
        return _called(own.object)
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(setting) if name is not None]
    except ValueError as error:
        raise ConfigurationError(
            f"{SETTING}: expected a template such as '{{prompt}}, photo' ({error})"
        ) from None
    if not names or not all(name.isidentifier() for name in names):
        raise ConfigurationError(
            f"{SETTING}: expected a template with the names of columns in braces, such as '{{prompt}}, "
            f"photo', or an import path, got {setting!r}"
        )
    return functools.partial(_filled, setting, tuple(names))


def rewritten(prompt: Prompt, setting: str) -> Prompt:
    """Return a prompt with what the model reads in its place.

    Raises:
        ConfigurationError: it cannot be rewritten, or the setting is no rewriter.
    """
    try:
        return replace(prompt, rewritten=rewriter_of(setting)(prompt.text, prompt.columns))
    except RewriteError as error:
        raise ConfigurationError(f"{SETTING}: {prompt.text!r}: {error}") from error


def _filled(template: str, names: tuple[str, ...], prompt: str, columns: Mapping[str, Any]) -> str:
    values = {**columns, PROMPT: prompt}
    absent = [name for name in names if not isinstance(values.get(name), str | int | float)]
    if absent:
        raise RewriteError(f"no text in {absent[0]!r}, which the template names")
    return template.format_map({name: values[name] for name in names})


def _called(function: Callable[[str], str]) -> Rewriter:
    def rewrite(prompt: str, columns: Mapping[str, Any]) -> str:
        try:
            found = function(prompt)
        except (Exception, SystemExit) as error:
            raise RewriteError(brief(error)) from error
        if not isinstance(found, str) or not found.strip():
            raise RewriteError(f"expected a text, got {found!r}")
        return found

    return rewrite
