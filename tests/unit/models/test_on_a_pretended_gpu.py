"""What a model does on a GPU, as far as no numbers are needed: on which device, and what the host waits for.

A wait empties the queue of kernels: a GPU then stands still until the host has begun the next ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from tests.support.pretended_gpu import pretended_gpu
from tests.support.recorders import PlainRecorder
from tests.support.tiny_infinity import tiny_model
from tests.support.var import load_case
from ttsvar_ray.models import cached_model
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.protocol import Execution

FAMILIES = pytest.mark.parametrize("family", ["infinity", "var"])


def make(family: str) -> tuple[CachedModel, list[nn.Module], tuple[Any, Any]]:
    """Return a model, its modules, and two texts."""
    if family == "var":
        model: Any = load_case("shared_modulation").model
        return model, [model.transformer, model.tokenizer], (3, 5)
    model = tiny_model(guidance=3.0)
    modules = [model.transformer, model.tokenizer, model.text_encoder.model]
    return model, modules, ("a red circle", "two green rings and a blue square")


def drawn(model: CachedModel, text: Any) -> Any:
    """Run two prompts to the end, with a selection in the middle; return the last state."""
    state = model.start(text, [0, 0, 1])
    while state.scale_index < model.num_scales:
        height, width = model.scale_schedule[state.scale_index]
        uniforms = np.zeros((state.num_rows, height * width * model.bits_per_token), np.float32)
        state = model.advance(state, uniforms)
        if state.scale_index == 3:
            state = model.gather(state, [0, 2])
    return state


@FAMILIES
def test_nothing_is_waited_for_but_what_is_asked_for(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, modules, texts = make(family)
    monkeypatch.setattr(cached_model, "decode_rows", lambda *_, **__: 1)
    with pretended_gpu(monkeypatch, *modules) as (device, waits):
        model.execution = Execution(stops=(1, 4, model.num_scales - 1))
        model.record_passes(PlainRecorder())
        text = model.encode_text(texts) if family == "infinity" else texts
        assert waits.taken() == [], "text"
        # Tables of positions are made once, at the first scale.
        drawn(model, text)
        waits.taken()
        state = drawn(model, text)
        assert state.summed.device == device
        assert waits.taken() == [], "scales"
        assert model.recorded is not None and model.recorded.played > 0
        images = model.decode(state)
        assert images.shape == (2, model.image_height, model.image_width, 3)
        assert waits.taken() == ["cached_model.py _decode_in_chunks"], "once, however many chunks there are"
        assert len(model.bits(state)) == model.num_scales == len(waits.taken())
        if family == "infinity":  # VAR reads whether bits that came from elsewhere are an entry
            bits = [scale[:1] for scale in model.bits(state)[:2]]
            waits.taken()
            model.replay(model.start(text, [0]), bits)
            assert waits.taken() == [], "replayed"


@FAMILIES
def test_a_models_gpu_is_the_current_one_while_it_computes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, modules, texts = make(family)
    with pretended_gpu(monkeypatch, *modules, index=1) as (_, waits):
        text = model.encode_text(texts) if family == "infinity" else texts
        waits.current.clear()
        state = drawn(model, text)
        if family == "infinity":
            model.look_ahead(model.start(text, [0]), 1)
        model.decode(state)
        assert waits.current == {1}, "Triton and graphs start kernels on the current device"
