"""Captions: grammar, negatives, prompt sets."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recipes.shapes.captions import KIND_WEIGHTS, sample_caption, sample_example
from recipes.shapes.prompt_set import (
    PromptSet,
    distinct_captions,
    geneval_metadata,
    prompt_set,
    write_prompt_set,
)
from recipes.shapes.scenes import sample_scene
from recipes.shapes.variants import hard_negatives, true_captions
from ttsvar_ray.errors import InputError
from ttsvar_ray.shapes.captions import KINDS, MAX_WORDS, VOCABULARY, Caption, Claim, Kind, parse_caption
from ttsvar_ray.shapes.world import Color, Relation, Shape

ALL = [caption for name in PromptSet for kind in KINDS for caption in distinct_captions(name, kind)]


def meaning(caption: Caption) -> tuple[object, ...]:
    return caption.kind, caption.claims, caption.relation


def test_every_text_parses_back_to_its_caption() -> None:
    assert len(ALL) == len({caption.text for caption in ALL}) == 1580
    for caption in ALL:
        assert parse_caption(caption.text) == caption


def test_the_vocabulary_is_closed_and_without_idle_words() -> None:
    words = {word for caption in ALL for word in caption.text.split()}
    assert words == set(VOCABULARY)
    assert max(len(caption.text.split()) for caption in ALL) <= MAX_WORDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A Photo of a Red ring. ", (Kind.COLORS, "red ring")),
        ("three crosses", (Kind.COUNTING, "3 cross")),
        ("a bar to the left of a moon", (Kind.POSITION, "left of")),
    ],
)
def test_texts_that_people_type(text: str, expected: tuple[Kind, str]) -> None:
    caption = parse_caption(text)
    claim = caption.claims[0]
    said = {
        Kind.COLORS: f"{claim.color.value if claim.color else None} {claim.shape.value}",
        Kind.COUNTING: f"{claim.count} {claim.shape.value}",
        Kind.POSITION: caption.relation.value if caption.relation else "",
    }
    assert (caption.kind, said[caption.kind]) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected '<a"),
        ("a dog", "found 'dog'"),
        ("two ring", "found 'ring'"),
        ("a pink ring", "colours are red"),
        ("five rings", "expected '<a"),
        ("a ring and a bar and a moon", "found 3"),
        ("a ring and a ring", "different shapes"),
        ("two rings and a bar", "one each"),
    ],
)
def test_texts_outside_the_grammar_are_explained(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_caption(text)


def test_examples_show_exactly_what_is_claimed() -> None:
    rng = np.random.default_rng(0)
    kinds: Counter[Kind] = Counter()
    for _ in range(600):
        scene, caption = sample_example(rng)
        kinds[caption.kind] += 1
        shapes = Counter(item.shape for item in scene.objects)
        assert shapes == {claim.shape: claim.count for claim in caption.claims}
        for claim in caption.claims:
            colors = {item.color for item in scene.objects if item.shape is claim.shape}
            assert claim.color is None or colors == {claim.color}
    for kind in KINDS:
        assert kinds[kind] / 600 == pytest.approx(KIND_WEIGHTS[kind], abs=0.06)


def test_a_wanted_kind_is_drawn() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        assert sample_caption(rng, kind).kind is kind


def test_plain_wording_is_the_shortest() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = sample_caption(rng, paraphrase=False).text
        assert not text.startswith("a photo of")
        assert " to the " not in text


def test_negatives_differ_in_one_attribute() -> None:
    rng = np.random.default_rng(0)
    expected = {
        Kind.SINGLE_OBJECT: 1,
        Kind.TWO_OBJECT: 2,
        Kind.COUNTING: 2,
        Kind.COLORS: 2,
        Kind.POSITION: 5,
        Kind.COLOR_ATTR: 5,
    }
    for caption in ALL:
        negatives = hard_negatives(caption, rng)
        assert len(negatives) == expected[caption.kind]
        for negative in negatives:
            assert negative.kind is caption.kind
            assert negative.text != caption.text
            assert parse_caption(negative.text) == negative
            assert negative.text.startswith("a photo of") == caption.text.startswith("a photo of")
            if negative.relation is caption.relation and not _swapped(caption, negative):
                changed = sum(
                    (a.shape is not b.shape) + (a.color is not b.color) + (a.count != b.count)
                    for a, b in zip(caption.claims, negative.claims, strict=True)
                )
                assert changed == 1
            elif negative.relation is not caption.relation:
                assert negative.claims == caption.claims


def _swapped(caption: Caption, negative: Caption) -> bool:
    """Whether the claims, or their colours, have changed places."""
    if negative.claims == caption.claims[::-1]:
        return True
    colors = [claim.color for claim in negative.claims]
    return caption.kind is Kind.COLOR_ATTR and colors == [claim.color for claim in caption.claims][::-1]


def test_attribution_and_position_negatives_hold_the_exchange() -> None:
    rng = np.random.default_rng(0)
    texts = {c.text for c in hard_negatives(parse_caption("a red ring and a blue bar"), rng)}
    assert "a blue ring and a red bar" in texts
    texts = {c.text for c in hard_negatives(parse_caption("a ring to the left of a bar"), rng)}
    assert {"a bar to the left of a ring", "a ring to the right of a bar"} <= texts


def test_true_captions_are_no_negatives_of_each_other() -> None:
    rng = np.random.default_rng(4)
    for _ in range(150):
        scene = sample_scene(rng)
        true = true_captions(scene)
        shapes = Counter(item.shape for item in scene.objects)
        said = {(c.claims[0].shape, c.claims[0].count) for c in true if c.kind is Kind.COUNTING}
        assert said == {(shape, count) for shape, count in shapes.items() if count > 1}
        for a, b in itertools.permutations([c for c in true if c.kind is Kind.POSITION], 2):
            assert a.claims != b.claims


def test_the_two_prompt_sets_share_meanings_but_no_text() -> None:
    for kind in KINDS:
        tuning, reporting = (distinct_captions(name, kind) for name in PromptSet)
        assert not {c.text for c in tuning} & {c.text for c in reporting}
        assert {meaning(c) for c in tuning} == {meaning(c) for c in reporting}


def test_a_prompt_set_takes_turns_and_grows_at_the_end() -> None:
    long = prompt_set("reporting", 100)
    assert [caption.kind for caption in long[:12]] == list(KINDS) * 2
    assert long[:60] == prompt_set("reporting", 10)
    assert Counter(caption.kind for caption in long) == dict.fromkeys(KINDS, 100)
    repeats = Counter(caption.text for caption in long if caption.kind is Kind.SINGLE_OBJECT)
    assert set(repeats.values()) == {20}
    assert long[:6] != prompt_set("tuning", 1)


def test_prompt_sets_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        prompt_set("tuning", 0)
    with pytest.raises(ValueError, match="holdout"):
        prompt_set("holdout", 1)


def test_metadata_has_genevals_form(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_prompt_set(path, [parse_caption("a ring left of a bar"), parse_caption("three moons")])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {
            "tag": "position",
            "include": [
                {"class": "bar", "count": 1},
                {"class": "ring", "count": 1, "position": ["left of", 0]},
            ],
            "prompt": "a ring left of a bar",
        },
        {
            "tag": "counting",
            "include": [{"class": "moon", "count": 3}],
            "exclude": [{"class": "moon", "count": 4}],
            "prompt": "three moons",
        },
    ]
    colored = Caption(
        text="a red ring", kind=Kind.COLORS, claims=(Claim(count=1, shape=Shape.RING, color=Color.RED),)
    )
    assert geneval_metadata(colored)["include"] == [{"class": "ring", "count": 1, "color": "red"}]
    assert {relation.value for relation in Relation} == {"left of", "right of", "above", "below"}
