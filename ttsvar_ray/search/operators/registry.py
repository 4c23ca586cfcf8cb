"""Operators by name: those of this package, and a user's own by import path."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any

from ttsvar_ray.errors import ConfigurationError, nearest
from ttsvar_ray.own_code import is_own, load_own, named_object, require_callables
from ttsvar_ray.search.operators.protocol import Operator, Signal

OPERATORS = {
    "cluster": "ttsvar_ray.search.operators.cluster:Cluster",
    "cluster-best": "ttsvar_ray.search.operators.cluster_best:ClusterBest",
    "farthest-point": "ttsvar_ray.search.operators.farthest_point:FarthestPoint",
    "dpp": "ttsvar_ray.search.operators.dpp:Dpp",
    "density": "ttsvar_ray.search.operators.density:Density",
    "likelihood": "ttsvar_ray.search.operators.likelihood:Likelihood",
    "resample": "ttsvar_ray.search.operators.resample:Resample",
    "top-k": "ttsvar_ray.search.operators.top_k:TopK",
    "diverse-top-k": "ttsvar_ray.search.operators.diverse_top_k:DiverseTopK",
    "keep": "ttsvar_ray.search.operators.keep:Keep",
}


def operator_class(name: str, *, setting: str) -> type[Operator]:
    """Return the operator of a name, or a user's own.

    Args:
        name: one of `OPERATORS`, or `package.module:Name`.
        setting: where it was named, for messages.

    Raises:
        ConfigurationError: no such operator, or a class that is none.
    """
    if name in OPERATORS:
        found: type[Operator] = named_object(OPERATORS[name])
        return found
    if not is_own(name):
        raise ConfigurationError(
            f"{setting}: expected {', '.join(OPERATORS)} or your own as package.module:Name, got {name!r}"
            f"{nearest(name, [*OPERATORS]) or '; correct it'}"
        )
    own = load_own(name, setting=setting)
    require_callables(own, ("select", "scored_scales", "describe"), setting=setting, what="an operator")
    problems = class_problems(own.object)
    try:
        typing.get_type_hints(own.object)
    except (NameError, TypeError, AttributeError) as error:
        problems.append(f"its annotations cannot be read ({type(error).__name__}: {error})")
    if "<locals>" in getattr(own.object, "__qualname__", ""):
        problems.append(
            f"expected a class that workers can import, got {own.object.__qualname__}, of a function"
        )
    if problems:
        raise ConfigurationError([f"{setting}: {name}: {problem}" for problem in problems])
    return own.object  # type: ignore[no-any-return]


def is_built_in(operator: Operator) -> bool:
    """Whether an operator is of this package."""
    return type(operator).__module__.startswith("ttsvar_ray.search.operators.")


def class_problems(found: Any) -> list[str]:
    """Return what keeps a class from being an operator."""
    problems = []
    if not (
        isinstance(found, type) and getattr(getattr(found, "__dataclass_params__", None), "frozen", False)
    ):
        problems.append("expected a frozen dataclass, whose fields are the operator's options")
    if getattr(found, "select", None) is Operator.select:
        problems.append("expected a method select(evidence, count, rng)")
    name = getattr(found, "name", None)
    if not isinstance(name, str) or not name.isprintable() or not name:
        problems.append(f"expected a name, a text in the class, got {name!r}")
    elif name in OPERATORS:
        problems.append(f"expected a name of its own, got that of a built-in operator, {name!r}")
    reads = getattr(found, "reads", None)
    if not isinstance(reads, frozenset) or not all(isinstance(signal, Signal) for signal in reads):
        problems.append(
            f"reads: expected a frozenset of Signal.FEATURES, REWARDS and LIKELIHOOD, got {reads!r}"
        )
    if not isinstance(getattr(found, "repeats", None), bool):
        problems.append("repeats: expected True or False, whether it may choose a trajectory twice")
    return problems


def own_sources(operators: Iterable[Operator]) -> dict[str, str]:
    """Return the digest of the source of each operator that is not of this package, by a name for it.

    Raises:
        ConfigurationError: a class that other processes could not import.
    """
    classes = {type(one) for one in operators if not is_built_in(one)}
    own = sorted(f"{each.__module__}:{each.__qualname__}" for each in classes)
    return {
        f"code.operator.{path}": load_own(path, setting="strategy.selections").source_digest for path in own
    }
