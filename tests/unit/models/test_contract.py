"""The contract of model families: kept by ours and by the documented example, and able to fail."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.support.tiny_infinity import tiny_model
from tests.support.tiny_model import TinyModel, TinyState
from tests.support.var import load_case
from ttsvar_ray.models.contract import ContractError, check_model
from ttsvar_ray.models.registry import load_model
from ttsvar_ray.types import Float32Array

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "own_model.py"


@pytest.fixture(autouse=True)
def _one_thread():  # type: ignore[no-untyped-def]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_built_in_model_keeps_the_contract() -> None:
    check_model(load_model("shapes", device="cpu"), ["a red circle", "two blue stars and a green ring"])


def test_guidance_that_begins_late_keeps_the_contract() -> None:
    model = tiny_model(guidance=[1.0] * 3 + [3.0] * 3 + [1.0] * 2)
    check_model(model, ["a red circle", "two blue rings and a green square"])


@pytest.mark.parametrize(
    ("name", "late"), [("own_modulation", False), ("own_modulation", True), ("shared_modulation", False)]
)
def test_var_keeps_the_contract(name: str, late: bool) -> None:
    model = load_case(name).model
    if late:
        scales = model.num_scales
        model.sampling = replace(model.sampling, guidance=(1.0, 1.0, *[3.0] * (scales - 2)))
    check_model(model, ["thing 1", "thing 5"])


def test_the_documented_example_keeps_the_contract_and_gains_by_the_search() -> None:
    module = _example()
    check_model(module.QuiltModel(), ["a red barn", "the sea"])
    result = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True, timeout=120, cwd=ROOT
    )
    raw, searched = (float(number) for number in re.findall(r"[+-]\d\.\d+", result.stdout))
    assert searched > raw
    assert result.stdout.strip() in (ROOT / "docs" / "adding_a_model.md").read_text()


class _DependsOnNeighbours(TinyModel):
    def advance(self, state: TinyState, uniforms: Float32Array) -> TinyState:
        return super().advance(state, (uniforms + np.float32(len(uniforms)) / 64) % np.float32(1))


class _ChangesItsArgument(TinyModel):
    def advance(self, state: TinyState, uniforms: Float32Array) -> TinyState:
        new = super().advance(state, uniforms)
        state.feature_map[:] = new.feature_map
        return new


class _ForgetsToReplayItsCache(TinyModel):
    def replay(self, state: TinyState, bits: Sequence[np.ndarray]) -> TinyState:
        new = super().replay(state, bits)
        return TinyState(text=new.text, cache=state.cache, feature_map=new.feature_map, bits=new.bits)


class _MixesUpRows(TinyModel):
    def gather(self, state: TinyState, rows: Sequence[int]) -> TinyState:
        return super().gather(state, sorted(rows))


class _DrawsMoreThanBits(TinyModel):
    def bits(self, state: TinyState) -> tuple[np.ndarray, ...]:
        return tuple(2 * scale for scale in super().bits(state))


class _HasNoReplay(TinyModel):
    replay = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (_DrawsMoreThanBits, r"bits of scale 0: expected 0 and 1 of shape .*, got \[.*2\] of shape"),
        (_HasNoReplay, "_HasNoReplay: expected replay, found none"),
        (_DependsOnNeighbours, "drawn without the others: other bits"),
        (_ChangesItsArgument, "advance changed its argument"),
        (_ForgetsToReplayItsCache, "going on from replayed bits: other bits"),
        (_MixesUpRows, "other bits"),
    ],
)
def test_broken_promises_are_named(model: type[TinyModel], complaint: str) -> None:
    check_model(TinyModel(), ["one", "two"])
    with pytest.raises(ContractError, match=complaint):
        check_model(model(), ["one", "two"])
