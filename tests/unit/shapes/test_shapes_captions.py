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
    HARD_SET,
    PromptSet,
    distinct_captions,
    geneval_metadata,
    prompt_set,
    write_prompt_set,
)
from recipes.shapes.scenes import clear_relation, sample_scene
from recipes.shapes.variants import hard_negatives, true_captions
from ttsvar_ray.errors import InputError
from ttsvar_ray.shapes.world import (
    HARD_KINDS,
    KINDS,
    MAX_WORDS,
    VOCABULARY,
    Caption,
    Claim,
    Color,
    Kind,
    Relation,
    Shape,
    parse_caption,
)

ALL = [caption for name in PromptSet for kind in KINDS for caption in distinct_captions(name, kind)]


def meaning(caption: Caption) -> tuple[object, ...]:
    return caption.kind, caption.claims, caption.relations


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
        ("a red bar above a ring to the right of a cyan moon", (Kind.TWO_RELATIONS, "above, right of")),
        ("four red rings and a blue bar", (Kind.TWO_COUNTS, "4 ring and 1 bar")),
    ],
)
def test_texts_that_people_type(text: str, expected: tuple[Kind, str]) -> None:
    caption = parse_caption(text)
    claim = caption.claims[0]
    said = {
        Kind.COLORS: f"{claim.color.value if claim.color else None} {claim.shape.value}",
        Kind.COUNTING: f"{claim.count} {claim.shape.value}",
        Kind.POSITION: ", ".join(relation.value for relation in caption.relations),
        Kind.TWO_RELATIONS: ", ".join(relation.value for relation in caption.relations),
        Kind.TWO_COUNTS: " and ".join(f"{each.count} {each.shape.value}" for each in caption.claims),
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
        ("a ring and a bar and a moon and a cross", "found 4"),
        ("a ring and a bar left of a moon", "found both"),
        ("a ring and a bar and a ring", "different shapes"),
        ("a ring and a ring", "different shapes"),
        ("two rings left of a bar", "one each"),
        ("two rings and a bar and a moon", "one each"),
    ],
)
def test_texts_outside_the_grammar_are_explained(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_caption(text)


@pytest.mark.parametrize("kind", [None, *HARD_KINDS])
def test_examples_show_exactly_what_is_claimed(kind: Kind | None) -> None:
    rng = np.random.default_rng(0)
    kinds: Counter[Kind] = Counter()
    for _ in range(600 if kind is None else 60):
        scene, caption = sample_example(rng, kind)
        kinds[caption.kind] += 1
        shapes = Counter(item.shape for item in scene.objects)
        assert shapes == {claim.shape: claim.count for claim in caption.claims}
        for claim in caption.claims:
            colors = {item.color for item in scene.objects if item.shape is claim.shape}
            assert claim.color is None or colors == {claim.color}
        for place, relation in enumerate(caption.relations):
            assert clear_relation(*scene.objects[place : place + 2]) is relation
    for drawn in KINDS if kind is None else ():
        assert kinds[drawn] / 600 == pytest.approx(KIND_WEIGHTS[drawn], abs=0.06)


def test_a_wanted_kind_is_drawn() -> None:
    rng = np.random.default_rng(0)
    for kind in Kind:
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
            if negative.relations == caption.relations and not _swapped(caption, negative):
                changed = sum(
                    (a.shape is not b.shape) + (a.color is not b.color) + (a.count != b.count)
                    for a, b in zip(caption.claims, negative.claims, strict=True)
                )
                assert changed == 1
            elif negative.relations != caption.relations:
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


@pytest.mark.parametrize("kind", HARD_KINDS)
def test_the_harder_sets_share_no_meaning_and_parse_back(kind: Kind) -> None:
    tuning, reporting = (distinct_captions(name, kind) for name in PromptSet)
    assert len({meaning(c) for c in (*tuning, *reporting)}) == len(tuning) + len(reporting) == 1000
    for caption in (*tuning, *reporting):
        assert parse_caption(caption.text) == caption


def test_negatives_of_the_harder_kinds_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    expected = {
        "a red ring left of a bar": 6,
        "a red ring left of a blue bar": 8,
        "two red rings and a blue bar": 8,
        "a red ring and a blue bar and a cyan moon": 8,
        "a red ring above a blue bar left of a cyan moon": 14,
    }
    for text, negatives in expected.items():
        caption = parse_caption(text)
        drawn = hard_negatives(caption, rng)
        assert len({meaning(negative) for negative in drawn} - {meaning(caption)}) == len(drawn) == negatives
        assert {parse_caption(negative.text).kind for negative in drawn} == {caption.kind}


@pytest.mark.parametrize(("path", "name"), [("shapes_hard", "reporting"), ("shapes_hard_tuning", "tuning")])
def test_the_harder_sets_are_shipped(path: str, name: str, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "jobs" / "prompts" / f"{path}.jsonl"
    lines = len(shipped.read_text(encoding="utf-8").splitlines())
    write_prompt_set(tmp_path / "again.jsonl", prompt_set(name, lines // len(HARD_SET), HARD_SET))
    assert shipped.read_bytes() == (tmp_path / "again.jsonl").read_bytes()


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
    line = geneval_metadata(parse_caption("a red ring left of a bar above a moon"))
    assert line["include"] == [
        {"class": "moon", "count": 1},
        {"class": "bar", "count": 1, "position": ["above", 0]},
        {"class": "ring", "count": 1, "color": "red", "position": ["left of", 1]},
    ]
    assert line["exclude"] == [{"class": shape, "count": 2} for shape in ("ring", "bar", "moon")]
    colored = Caption(
        text="a red ring", kind=Kind.COLORS, claims=(Claim(count=1, shape=Shape.RING, color=Color.RED),)
    )
    assert geneval_metadata(colored)["include"] == [{"class": "ring", "count": 1, "color": "red"}]
    assert {relation.value for relation in Relation} == {"left of", "right of", "above", "below"}
