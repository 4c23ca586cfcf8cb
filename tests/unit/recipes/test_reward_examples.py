"""The shapes reward's examples: what is called true is true, what is called false is false."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.shapes.architecture import QUANTIZER, TOKENIZER
from recipes.shapes.captions import sample_example, write_caption
from recipes.shapes.hard import mix
from recipes.shapes.reward_degrade import (
    WHOLE,
    TruncatedDecodes,
    as_rendered,
    blur_and_noise,
    load_truncated_decodes,
    take_tokenizer,
)
from recipes.shapes.reward_examples import (
    CAPTIONS_PER_IMAGE,
    draw_negatives,
    is_false,
    label,
    sample_batch,
)
from recipes.shapes.reward_network import TEXT_TOKENS, build_reward_tokenizer
from recipes.shapes.scenes import sample_scene
from recipes.shapes.variants import hard_negatives, true_captions
from ttsvar_ray.models.autoencoder import to_uint8
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.shapes.checker import judge
from ttsvar_ray.shapes.detection import FoundObject
from ttsvar_ray.shapes.world import COLORS, HARD_KINDS, KINDS, SHAPES, Kind, parse_caption


@pytest.mark.parametrize("kind", KINDS)
def test_no_negative_is_true_and_no_true_caption_is_false(kind: Kind) -> None:
    rng = np.random.default_rng([1, KINDS.index(kind)])
    for _ in range(60):
        scene, caption = sample_example(rng, kind)
        true = {other.text for other in true_captions(scene)}
        assert not is_false(scene, caption)
        assert not any(is_false(scene, other) for other in true_captions(scene))
        negatives = draw_negatives(scene, caption, rng, CAPTIONS_PER_IMAGE - 1)
        assert len(negatives) == CAPTIONS_PER_IMAGE - 1
        for negative in negatives:
            assert write_caption(negative.kind, negative.claims, negative.relations).text not in true


@pytest.mark.parametrize("kind", HARD_KINDS)
def test_the_checker_agrees_on_what_is_true_and_false_of_harder_scenes(kind: Kind) -> None:
    rng = np.random.default_rng([2, tuple(Kind).index(kind)])
    kinds = set()
    for _ in range(40):
        scene, caption = sample_example(rng, kind)
        objects = tuple(
            FoundObject(
                shape=item.shape,
                color=item.color,
                fit=1.0,
                box=tuple(  # type: ignore[arg-type]
                    round(480 * edge)
                    for edge in (
                        item.x - item.radius,
                        item.y - item.radius,
                        item.x + item.radius,
                        item.y + item.radius,
                    )
                ),
                area=1.0,
            )
            for item in scene.objects
        )
        assert judge(objects, caption).correct
        assert not is_false(scene, caption)
        for negative in draw_negatives(scene, caption, rng, CAPTIONS_PER_IMAGE - 1, mix()):
            assert not judge(objects, negative).correct
            assert mix().allows(negative)
            kinds.add(negative.kind)
    # Beside what is one thing away: another number of the same shapes, where there are several.
    assert len(kinds & set(HARD_KINDS)) > (kind is Kind.TWO_COUNTS)


def test_exchanged_relations_and_colours_are_always_among_the_negatives() -> None:
    rng = np.random.default_rng(2)
    for kind in (Kind.POSITION, Kind.COLOR_ATTR):
        scene, caption = sample_example(rng, kind)
        shapes = [claim.shape for claim in caption.claims]
        negatives = draw_negatives(scene, caption, rng, 3)
        assert any(
            sorted(claim.shape.value for claim in negative.claims) == sorted(shape.value for shape in shapes)
            for negative in negatives
        )


def test_doubtful_relations_are_not_called_false() -> None:
    rng = np.random.default_rng(3)
    seen = 0
    while seen < 20:
        scene = sample_scene(rng)
        if len(scene.objects) != 2 or scene.objects[0].shape is scene.objects[1].shape:
            continue
        relations = [caption for caption in true_captions(scene) if caption.kind is Kind.POSITION]
        names = [item.shape.value for item in scene.objects]
        judged = [
            is_false(scene, parse_caption(f"a {names[0]} {word} a {names[1]}"))
            for word in ("left of", "right of", "above", "below")
        ]
        assert sum(judged) == (3 if relations else 0)
        seen += 1


def test_nouns_point_at_their_objects() -> None:
    rng = np.random.default_rng(4)
    tokenizer = build_reward_tokenizer()
    scenes, kinds, texts = [], [], []
    for _ in range(40):
        scene, caption = sample_example(rng)
        scenes.append(scene)
        kinds.append(caption.kind)
        texts += [caption.text, hard_negatives(caption, rng)[0].text]
    batch = label(np.zeros((40, 48, 48, 3), np.uint8), scenes, kinds, texts)
    for row, text in enumerate(batch.texts):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        scene = scenes[row // 2]
        claims = parse_caption(text).claims
        for column in range(3):
            place = batch.noun_token[row, column]
            if column >= len(claims):
                assert place == 0
                continue
            assert tokens[place].startswith(claims[column].shape.value)
            count = sum(item.shape is claims[column].shape for item in scene.objects)
            assert batch.noun_count[row, column] == count
            chosen = batch.noun_object[row, column]
            assert (chosen >= 0) == (count == 1)
            if chosen >= 0:
                assert SHAPES[batch.shape_index[row // 2, chosen]] is claims[column].shape
                assert COLORS[batch.color_index[row // 2, chosen]] is scene.objects[chosen].color


def test_a_batch_is_reproducible_and_no_text_is_cut_or_unknown() -> None:
    first, second = (sample_batch(np.random.default_rng(5), 80, 48) for _ in range(2))
    assert first.texts == second.texts
    np.testing.assert_array_equal(first.images, second.images)
    tokenizer = build_reward_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in first.texts]
    assert max(len(row) for row in ids) <= TEXT_TOKENS
    assert all(tokenizer.unk_token_id not in row for row in ids)
    assert tokenizer("an elephant")["input_ids"].count(tokenizer.unk_token_id) == 2


def test_relations_and_attributions_are_a_third_of_the_negatives_at_least() -> None:
    batch = sample_batch(np.random.default_rng(6), 400, 48)
    exchanged = 0
    for row in range(400):
        captions = [parse_caption(text) for text in batch.texts[row * 4 : row * 4 + 4]]
        true = captions[0]
        for negative in captions[1:]:
            same_shapes = {c.shape for c in true.claims} == {c.shape for c in negative.claims}
            same_colors = {c.color for c in true.claims} == {c.color for c in negative.claims}
            if true.kind in (Kind.POSITION, Kind.COLOR_ATTR) and negative.kind is true.kind:
                exchanged += same_shapes and same_colors
    assert exchanged / (400 * 3) > 0.25


def test_degraded_images_keep_their_shape_and_some_stay_clean() -> None:
    images = sample_batch(np.random.default_rng(7), 60, 48).images
    degraded = blur_and_noise(images, np.random.default_rng(8))
    assert degraded.shape == images.shape
    assert degraded.dtype == np.uint8
    unchanged = (degraded == images).all(axis=(1, 2, 3)).mean()
    assert 0.2 < unchanged < 0.8
    # Blur and noise hide detail, not content: the mean colour stays.
    assert np.abs(degraded.mean(axis=(1, 2)) - images.mean(axis=(1, 2))).max() < 6


def test_truncated_decodes_are_what_the_tokenizer_makes_of_its_first_scales() -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(TOKENIZER)
    quantizer = replace(QUANTIZER, gains=(0.5,) * len(QUANTIZER.schedule))
    images = sample_batch(np.random.default_rng(9), 12, 48).images
    degraded = TruncatedDecodes(tokenizer, quantizer, (9,), flip_rate=0.0)(images, np.random.default_rng(1))
    with torch.inference_mode():
        features = tokenizer.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
        bits, _ = quantizer.encode(features)
        summed = quantizer.empty_map(12)
        for scale_index in range(9):
            summed = quantizer.accumulate(summed, bits[scale_index], scale_index)
        decoded = to_uint8(tokenizer.decode(summed)).numpy()
    is_decode = (np.abs(degraded.astype(int) - decoded) <= 1).all(axis=(1, 2, 3))
    assert 4 <= is_decode.sum() <= 11


def test_images_of_finished_ones_alone_are_renders_and_decodes_of_all_scales(tmp_path: Path) -> None:
    take_tokenizer("shapes", tmp_path)
    finished = load_truncated_decodes(tmp_path, num_scales=WHOLE, flip_rate=0.0, others=as_rendered)
    usual = load_truncated_decodes(tmp_path, flip_rate=0.0)
    assert finished is not None
    assert usual is not None
    images = sample_batch(np.random.default_rng(9), 40, 48).images
    seen, spoilt = (how(images, np.random.default_rng(1)).astype(int) for how in (finished, usual))
    unchanged = (seen == images).all(axis=(1, 2, 3))
    assert 0.2 < unchanged.mean() < 0.5
    away = np.abs(seen - images).mean(axis=(1, 2, 3))
    assert away.max() < 8  # grey levels; a decode of seven scales is about 20 away
    assert np.abs(spoilt - images).mean(axis=(1, 2, 3)).max() > 2 * away.max()
