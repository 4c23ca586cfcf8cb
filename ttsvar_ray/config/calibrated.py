"""Thresholds of an adaptive search by a calibration file: read once, at the door, and numbers from there on.

strategy: {name: adaptive, calibration: plan.calibration.json, budget: 1.5}
strategy: {name: adaptive, calibration: ..., stop_at: {quantile: 0.7}, reject_below: {6: {quantile: 0.3}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttsvar_ray.config.explain import validated
from ttsvar_ray.errors import ConfigurationError, noting
from ttsvar_ray.search.calibration_file import FORMAT, Calibration

_THRESHOLDS = ("stop_at", "reject_below", "max_rounds")


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ConfigurationError: it cannot be read, or is none; with every problem.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ConfigurationError(f"strategy.calibration: {path} cannot be read ({why}); {_WHICH}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ConfigurationError(
            f"strategy.calibration: {path} is no calibration file of this version; {_WHICH}"
        )
    problems: list[str] = []
    known = validated(Calibration, content, problems)
    problems += [
        f"quantiles: expected numbers of scales, got {scale!r}"
        for scale in (known.quantiles if known is not None else ())
        if not scale.isdecimal()
    ]
    if known is not None and not known.quantiles:
        problems.append("quantiles: expected those of one scale or more, got none")
    if known is None or problems:
        raise ConfigurationError([f"strategy.calibration: {path}: {one}" for one in problems])
    return known


_WHICH = "name the file that `ttsvar-ray calibrate` wrote beside its plan"


def with_thresholds(settings: dict[str, Any], problems: list[str]) -> None:
    """Put numbers in the place of quantiles and of a budget, in raw settings.

    Args:
        settings: of the job, as written; changed.
        problems: gets what is wrong; the rest is left to the validation of the settings.
    """
    strategy = settings.get("strategy")
    if not isinstance(strategy, dict):
        return
    asks = _is_quantile(strategy.get("stop_at")) or any(map(_is_quantile, _rejecting(strategy).values()))
    budget, path = strategy.get("budget"), strategy.get("calibration")
    if path is None:
        if asks or budget is not None:
            setting = "budget" if budget is not None else "stop_at and reject_below: quantiles"
            problems.append(
                f"strategy.{setting}: only a calibration file says what that is in rewards; name the one of "
                "`ttsvar-ray calibrate` as strategy.calibration"
            )
        return
    known = None
    with noting(problems):
        known = read_calibration(path)
    if known is None:
        return
    problems += _mismatches(settings, known)
    if budget is None:
        _with_quantiles(strategy, known, problems)
    else:
        _within_budget(strategy, known, budget, problems)


def _with_quantiles(strategy: dict[str, Any], known: Calibration, problems: list[str]) -> None:
    if not any(setting in strategy for setting in ("stop_at", "reject_below")):
        problems.append(
            "strategy.calibration: nothing would be read from it; add budget, or stop_at: {quantile: 0.7}"
        )
        return
    if _is_quantile(strategy.get("stop_at")):
        asked = strategy["stop_at"]
        strategy["stop_at"] = _looked_up(known, known.last_scale, asked, "stop_at", problems)
    if rejecting := _rejecting(strategy):
        strategy["reject_below"] = {
            scale: _looked_up(known, scale, least, f"reject_below[{scale}]", problems)
            if _is_quantile(least)
            else least
            for scale, least in rejecting.items()
        }


def _looked_up(
    known: Calibration, scale: Any, asked: Mapping[str, Any], setting: str, problems: list[str]
) -> float:
    share = asked["quantile"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        problems.append(f"strategy.{setting}.quantile: expected a share from 0 to 1, got {share!r}")
        return 0.0
    found = known.reward_at(scale, share) if isinstance(scale, int) else None
    if found is None:
        scales = ", ".join(sorted(known.quantiles, key=int))
        problems.append(
            f"strategy.{setting}: the calibration has scored scales {scales}, not {scale}; choose one of "
            "them, or calibrate with --scales"
        )
        return 0.0
    return found


def _within_budget(strategy: dict[str, Any], known: Calibration, budget: Any, problems: list[str]) -> None:
    own = [setting for setting in _THRESHOLDS if strategy.get(setting) is not None]
    if own:
        problems.append(
            f"strategy.budget: chooses {', '.join(_THRESHOLDS)} itself, got {', '.join(own)} beside it; "
            "remove one"
        )
        return
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        return  # the validation says so
    found = known.policy_within(budget)
    if found is None:
        cheapest = min((one.cost for one in known.policies), default=None)
        least = "none was kept" if cheapest is None else f"the cheapest that was kept costs {cheapest:.3g}"
        problems.append(
            f"strategy.budget: no thresholds cost {budget:g} images a prompt or less, {least}; raise it"
        )
        return
    strategy.update(found.settings)


def _mismatches(settings: Mapping[str, Any], known: Calibration) -> list[str]:
    """Return what the file was not made for: thresholds are rewards of one model by one reward."""
    problems = []
    for section, key, default, theirs in (
        ("model", "name", "shapes", known.model),
        ("reward", "name", "auto", known.reward),
        ("reward", "options", {}, known.reward_options),
    ):
        given = settings.get(section)
        ours = given.get(key, default) if isinstance(given, dict) else default
        if ours != theirs:
            problems.append(
                f"strategy.calibration: made for {section}.{key} {theirs}, and this job has {ours}; "
                "calibrate with it"
            )
    return problems


def _rejecting(strategy: Mapping[str, Any]) -> dict[Any, Any]:
    given = strategy.get("reject_below")
    return given if isinstance(given, dict) else {}


def _is_quantile(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"quantile"}
