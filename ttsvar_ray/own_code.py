"""A user's own class by its import path, `package.module:Name`, from the settings to the object.

Comes in: the text of a setting. Goes out: what the name stands for, and the digest of the file that defines
it, so that a run that is continued with changed code is refused as it is with changed settings. Nothing is
registered, searched for or pickled: every process imports the same module for itself.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ttsvar_ray.errors import ConfigurationError, TtsVarError, brief

_FORM = "package.module:Name"

VISION_LANGUAGE = "ttsvar_ray.rewards.vision_language:VisionLanguage"
"""Goes by an import path, for its options; yet its cost is known, by the sizes in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCode:
    """What an import path stands for.

    Attributes:
        object: the class or function.
        path: as written in the settings.
        source_digest: sha256 of the source file of its module, hexadecimal; where that has it from another,
            of both files together. What these import is not in it.
        arguments: keywords that a class is called with.
    """

    object: Any
    path: str
    source_digest: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self, *, setting: str) -> Any:
        """Call it with its arguments.

        Raises:
            ConfigurationError: it raises. Memory that is full, and errors of this package, pass.
        """
        try:
            return self.object(**self.arguments)
        except (TtsVarError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
                raise
            raise ConfigurationError(f"{setting}: {self.path} cannot be made ({brief(error)})") from error


def is_own(name: str) -> bool:
    """Whether a name in the settings is an import path; no built-in name holds a colon."""
    return ":" in name


def load_own(path: str, *, setting: str) -> OwnCode:
    """Import what a setting names.

    The module is looked for where Python looks, and last in the current folder.

    Args:
        path: `package.module:Name`; a name inside a class is `package.module:Class.Name`.
        setting: dotted name of the setting, for messages.

    Raises:
        ConfigurationError: not such a path, no such module or name, a module that fails while it is
            imported, or one without a source file.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise ConfigurationError(f"{setting}: expected an import path such as {_FORM}, got {path!r}")
    if module_name == "__main__":
        raise ConfigurationError(
            f"{setting}: expected a module that workers can import, got {path!r}: in each of them __main__ "
            "is another program; move the class to a file of its own and name that"
        )
    module = _import(module_name, setting)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(_no_such_name(module_name, found, part, setting))
        found = getattr(found, part)
    source = _source(module, setting)
    origin = sys.modules.get(str(getattr(found, "__module__", None)), module)
    if origin is not module and str(getattr(origin, "__file__", None)).endswith(".py"):
        source += _source(origin, setting)
    return OwnCode(object=found, path=path, source_digest=hashlib.sha256(source).hexdigest())


def require_callables(own: OwnCode, members: Sequence[str], *, setting: str, what: str) -> None:
    """Refuse a class or an object that lacks what its protocol asks, before anything is built of it.

    Args:
        own: what was imported.
        members: names of the protocol's methods.
        setting: dotted name of the setting, for messages.
        what: which protocol, for messages, such as "a reward".

    Raises:
        ConfigurationError: names every missing method at once.
    """
    abstract: frozenset[str] = getattr(own.object, "__abstractmethods__", frozenset())
    missing = [name for name in members if name in abstract or not callable(getattr(own.object, name, None))]
    if missing:
        raise ConfigurationError(
            f"{setting}: expected {what} with the methods {', '.join(members)}; {own.path} has no "
            f"{', '.join(missing)}"
        )


def load_own_class(
    path: str,
    *,
    methods: Sequence[str],
    given: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    setting: str,
    what: str,
) -> OwnCode:
    """Import a class that a setting names, and refuse it where it cannot be what the setting asks for.

    Nothing is made of it yet, so that this can be asked before weights are loaded.

    Args:
        path: see `load_own`.
        methods: that its objects must have.
        given: keywords that this package calls it with.
        options: further keywords, from the settings.
        setting: dotted name of the setting, for messages; its options are in the same section.
        what: its objects are, for messages, such as "a reward".

    Raises:
        ConfigurationError: what `load_own` refuses, no class, missing methods, other arguments, or an option
            that is given already.
    """
    if twice := sorted(given.keys() & (options or {}).keys()):
        section = setting.partition(".")[0]
        raise ConfigurationError(f"{section}.options: {twice[0]} is given already; remove it")
    arguments = {**given, **(options or {})}
    own = load_own(path, setting=setting)
    if not inspect.isclass(own.object):
        raise ConfigurationError(f"{setting}: expected a class, got {path}, a {type(own.object).__name__}")
    require_callables(own, methods, setting=setting, what=what)
    try:
        inspect.signature(own.object).bind(**arguments)
    except TypeError as error:
        raise ConfigurationError(
            f"{setting}: {path} is called with {', '.join(arguments)} as keywords, which it does not take "
            f"so: {error}"
        ) from None
    return replace(own, arguments=arguments)


def named_object(path: str) -> Any:
    """Return what one of this package's own import paths stands for; the module is imported only now."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _import(module_name: str, setting: str) -> ModuleType:
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        # An installed command does not look in the current folder, `python -m` and Ray's workers do.
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"{setting}: module {module_name!r} imports {error.name!r}, which is not installed"
            ) from error
        raise ConfigurationError(
            f"{setting}: no module {error.name!r} on the Python path or in {here}; install it, start the job "
            "in the folder that holds it, or add that folder to PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{setting}: module {module_name!r} fails while it is imported ({brief(error)})"
        ) from error


def _no_such_name(module_name: str, holder: Any, name: str, setting: str) -> str:
    public = [key for key in dir(holder) if not key.startswith("_")]
    close = difflib.get_close_matches(name, public, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(public[:12]) or 'no public names'}"
    return f"{setting}: module {module_name!r} has no {name!r}; {hint}"


def _source(module: ModuleType, setting: str) -> bytes:
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        raise ConfigurationError(
            f"{setting}: expected a module with a source file, whose digest a run records; "
            f"{module.__name__!r} has {file or 'none'}"
        )
    return Path(file).read_bytes()
