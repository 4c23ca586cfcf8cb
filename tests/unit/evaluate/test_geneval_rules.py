"""GenEval's rules: cases by hand, what holds for any detections, and the command that compares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import InputError
from ttsvar_ray.evaluate.geneval_prompts import RELATIONS, prompts_digest, read_prompt
from ttsvar_ray.evaluate.geneval_rules import Detected, GenEvalRules, judge, overlap, relations

CASES = Path(__file__).parents[2] / "data" / "geneval" / "cases.json"
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

boxes = st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(1, 300)] * 2).map(
    lambda corner: np.array([corner[0], corner[1], corner[0] + corner[2], corner[1] + corner[3]], np.float32)
)
objects = st.builds(
    lambda box, score: Detected(box=box, score=np.float32(score)), boxes, st.floats(0, 1, width=32)
)


def no_colors(found: Sequence[Detected], class_name: str) -> list[str]:
    raise AssertionError("nobody asked for colors")


def prompt(tag: str = "single_object", **clauses: Any) -> Any:
    return read_prompt({"tag": tag, "prompt": "a photo", **clauses}, where="here")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["verify", "geneval", *arguments])


def test_the_cases_worked_out_by_hand() -> None:
    result = run(str(CASES))
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "cpu float32: 6 cases, 11 arrays compared, all agree"


@pytest.mark.parametrize("what", ["correct", "kept", "color_calls", "variant", "relations", "iou"])
def test_the_command_says_what_differs(tmp_path: Path, what: str) -> None:
    content = json.loads(CASES.read_text())
    case = content["cases"][10]
    if what == "correct":
        case["correct"] = not case["correct"]
    elif what == "kept":
        case["kept"]["car"].reverse()
    elif what == "color_calls":
        case["color_calls"] = []
    elif what == "variant":
        content["variants"][1]["correct"][3] = True
    else:
        content["geometry"][2][what] = ["above"] if what == "relations" else 0.5
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content))
    result = run(str(changed))
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].endswith("of 11 differ")


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"cases": []}')
    assert run(str(file)).exit_code == 2
    assert run(str(tmp_path / "nothing.json")).exit_code == 2
    assert run(str(CASES), "--dtype", "bfloat16").exit_code == 2


def test_clauses_that_nothing_here_can_answer_are_refused() -> None:
    for clause, word in (
        ({"class": "unicorn", "count": 1}, "class"),
        ({"class": "dog", "count": 0}, "count"),
        ({"class": "dog", "count": 1, "color": "teal"}, "color"),
        ({"class": "dog", "count": 1, "position": ["near", 0]}, "position"),
        ({"class": "dog", "count": 1, "position": ["above", 0]}, "an earlier clause"),
        ({"class": "dog"}, "a class and a count"),
    ):
        with pytest.raises(InputError, match=rf"here: include\[0\].*{word}"):
            prompt(include=[clause])
    with pytest.raises(InputError, match="found no tag, include"):
        read_prompt({"prompt": "a dog"}, where="row 0")


def test_the_digest_is_of_the_set_of_prompts() -> None:
    dog, cat = (prompt(include=[{"class": name, "count": 1}]) for name in ("dog", "cat"))
    assert prompts_digest([dog, cat]) == prompts_digest([cat, dog, cat])
    assert prompts_digest([dog]) != prompts_digest([dog, cat])


@given(boxes, boxes)
def test_relations_turn_round_with_the_boxes(this: Any, other: Any) -> None:
    seen = relations(this, other, 0.1)
    assert {OPPOSITE[name] for name in seen} == relations(other, this, 0.1)
    assert not any({name, OPPOSITE[name]} <= seen for name in RELATIONS)
    assert seen <= relations(this, other, 0.0), "a slack only takes relations away"


@given(boxes, boxes)
def test_overlap_is_symmetric_and_a_share(this: Any, other: Any) -> None:
    assert overlap(this, other) == overlap(other, this)
    assert 0 <= overlap(this, other) <= 1 == overlap(this, this)


@given(st.lists(objects, max_size=30), st.integers(1, 5), st.randoms(use_true_random=False))
def test_counting_means_exactly(found: list[Detected], count: int, random: Any) -> None:
    asked = prompt(
        "counting",
        include=[{"class": "cup", "count": count}],
        exclude=[{"class": "cup", "count": count + 1}],
    )
    verdict = judge(asked, {"cup": found}, no_colors, GenEvalRules())
    sure = sum(one.score > np.float32(0.9) for one in found)
    assert verdict.correct == (min(sure, 16) == count) == (not verdict.reasons)
    scores = [one.score for one in verdict.kept.get("cup", [])]
    assert scores == sorted(scores, reverse=True)
    random.shuffle(found)
    assert judge(asked, {"cup": found}, no_colors, GenEvalRules()).correct == verdict.correct


@given(st.lists(objects, max_size=30))
def test_objects_kept_apart_overlap_less_than_allowed(found: list[Detected]) -> None:
    asked = prompt(include=[{"class": "cup", "count": 1}])
    kept = judge(asked, {"cup": found}, no_colors, GenEvalRules(max_overlap=0.5)).kept.get("cup", [])
    assert all(overlap(a.box, b.box) < 0.5 for a in kept for b in kept if a is not b)
    everything = judge(asked, {"cup": found}, no_colors, GenEvalRules()).kept.get("cup", [])
    assert bool(kept) == bool(everything)
