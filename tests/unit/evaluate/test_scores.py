"""Side tables of a run: their values, how they go on, what is refused."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.scored_run import IMAGES, OWN, call, picture, rows, score, scored_run
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.evaluate import near_duplicates
from ttsvar_ray.evaluate.score_table import percentiles, write_scores
from ttsvar_ray.evaluate.scorers import column_name, difference_hash


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return scored_run(tmp_path, monkeypatch)


def test_a_reward_of_ones_own_is_aligned_by_id_and_summed_up(output: Path) -> None:
    before = {part: part.read_bytes() for part in output.glob("data/*")}
    told = score(output, "--reward", "mine_scores:Red")
    found = rows(output / "scores" / "Red")
    assert [(r["row"], r["prompt_id"], r["image_rank"], r["Red"]) for r in found] == [
        (0, "id0", 0, 250.0),
        (0, "id0", 1, 250.0),
        (1, "id1", 0, 20.0),
        (2, "id2", 0, 20.0),
        (2, "id2", 1, 20.0),
        (3, "id3", 0, 250.0),
    ]
    assert [r["Red_percentile"] for r in found] == [0.5, 0.5, None, 0.5, 0.5, None]
    assert {part: part.read_bytes() for part in output.glob("data/*")} == before
    head, steering, held_out = told.splitlines()[-3:]
    assert head.split()[-3:] == ["5%", "50%", "95%"]
    assert steering.startswith("reward (shapes, steered)") and steering.split()[3:5] == ["4", "0.8000"]
    assert held_out.split()[:4] == ["Red", "4", "135.0000", "66.3953"]


def test_prompts_that_say_the_same_enter_the_standard_error_as_one(output: Path) -> None:
    for part in output.glob("data/part-*.parquet"):
        table = pq.read_table(part)
        said = pa.array([f"a photo of {row // 2} rings" for row in table["row"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", said), part)
    similar = score(output, "--similar", "mine_scores:Colours")
    assert re.search(r"all pairs\): 0\.\d+ \+- 0\.\d+, 2 prompts", similar), "of two texts"
    told = score(output, "--reward", "mine_scores:Red").splitlines()
    # 0.5, 0.1 of one text; 2.5, 0.1 of the other: the texts' means are 0.3 and 1.3, half a unit from 0.8.
    assert told[-2].split()[3:6] == ["4", "0.8000", "0.5000"]
    assert told[-1].split()[1:4] == ["4", "135.0000", "0.0000"], "250 and 20 of each"
    for part in output.glob("data/part-*.parquet"):
        table = pq.read_table(part)
        said = pa.array(["a photo of rings"] * len(table))
        pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", said), part)
    assert "+- nan, 2 prompts of several images" in score(output, "--similar", "mine_scores:Colours")


def test_scores_of_other_images_are_not_shown_as_theirs(output: Path) -> None:
    score(output, "--reward", "mine_scores:Red")
    file = output / "scores" / "Red" / "part-00001.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    pushed = call("push", str(output), "me/rings", "--card-only", code=2)
    assert "the scores Red are of other images; score them again" in pushed


def test_the_exact_checker_gives_no_number_to_prompts_of_another_world(output: Path) -> None:
    told = score(output, "--reward", "ttsvar_ray.shapes.checker:ExactChecker", "--reward", "mine_scores:Red")
    assert told.splitlines()[-2].split()[:2] == ["ExactChecker", "0"] and "no finite score" in told
    assert told.splitlines()[-1].split()[:3] == ["Red", "4", "135.0000"], "others are told all the same"


def test_it_goes_on_where_it_was_and_follows_the_data(output: Path) -> None:
    score(output, "--reward", "mine_scores:Red")
    first, second = (output / "scores" / "Red" / f"part-0000{chunk}.parquet" for chunk in (0, 1))
    content, stamp = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    score(output, "--reward", "mine_scores:Red")
    assert second.read_bytes() == content and first.stat().st_mtime_ns == stamp
    # The data part is another one now.
    record = json.loads((output / "manifest" / "part-00000.json").read_text())
    record["data"]["sha256"] = "0" * 64
    (output / "manifest" / "part-00000.json").write_text(json.dumps(record))
    score(output, "--reward", "mine_scores:Red")
    assert first.stat().st_mtime_ns != stamp
    # Other code gives other scores: they are not mixed.
    table = pq.read_table(second)
    told = json.loads(table.schema.metadata[b"ttsvar_ray.scores"])
    told["basis"]["fingerprints"] = {"code": "another"}
    pq.write_table(table.replace_schema_metadata({"ttsvar_ray.scores": json.dumps(told)}), second)
    complaint = score(output, "--reward", "mine_scores:Red", code=2)
    assert "its scores rest on something else (fingerprints: {'code': 'another'} there" in complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "expected --reward, --safety, --near-duplicates or --similar"),
        (["--similar", "pol"], "did you mean 'pool'"),
        (["--near-duplicates", "4", "--similarity", "0.9"], "--similarity: 0.9 is read by --similar alone"),
        (["--similar", "inception"], "--similar: add the file inception_v3_google"),
        (["--similar", "mine_scores:Red"], "extract"),
        (["--reward", "shape"], "did you mean 'shapes'"),
        (["--reward", "hps-v2.1"], "needs the directory of its weights"),
        (["--reward", "shapes", "--reward", "shapes"], "--reward: 'shapes' is given twice"),
        (["--unsafe", "nsfw"], "Say it by --safety"),
        (["--reward", "shapes", "--address", "auto"], "--address: add --workers"),
        (["--safety", "nowhere"], "expected an image classifier of transformers"),
    ],
)
def test_what_cannot_be_scored_is_said(output: Path, arguments: list[str], complaint: str) -> None:
    assert complaint in score(output, *arguments, code=2)


@pytest.mark.parametrize(
    ("does", "complaint"),
    [
        ("return [1.0]", "reward odd: expected one score for each of 3 images, got shape (1,)"),
        (
            "return [[1.0]] * len(images)",
            "reward odd: expected one score for each of 3 images, got shape (3, 1)",
        ),
        ("raise KeyError('lost')", "KeyError: 'lost' [odd_scores.py, line "),
        ("raise SystemExit(3)", "SystemExit: 3 [odd_scores.py, line "),
        ("open('nowhere')", "No such file or directory: 'nowhere' [odd_scores.py, line "),
    ],
)
def test_a_reward_of_ones_own_that_fails_is_no_fault_of_ours(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, complaint: str
) -> None:
    head, _, _ = OWN.partition("    def score(")
    said = f"    def score(self, images, texts):\n        {does}\n"
    (tmp_path / "odd_scores.py").write_text(
        head.replace("class Red", "class Odd").replace('"red"', '"odd"') + said
    )
    monkeypatch.delitem(sys.modules, "odd_scores", raising=False)
    code = 2 if "return" in does else 1
    told = call("score", str(output), "--reward", "odd_scores:Odd", "--device", "cpu", code=code)
    assert complaint in told and "unexpected" not in told
    assert code == 2 or "odd_scores:Odd: part 0 failed: " in told


def test_a_safety_model_tags_and_drops_nothing(output: Path, tmp_path: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    pixels = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(pixels))
    assert "expected one of the classes normal, nsfw, got 'bad'" in score(
        output, "--safety", str(tmp_path / "vit"), "--unsafe", "bad", code=2
    )
    told = score(output, "--safety", str(tmp_path / "vit"), "--unsafe", "nsfw")
    assert "(label: 'nsfw' there, '' now)" in score(output, "--safety", str(tmp_path / "vit"), code=2)
    found = rows(output / "scores" / "safety")
    assert len(found) == 6
    assert all((r["safety"] > 0.5) == (r["safety_tag"] == "nsfw") and 0 < r["safety"] < 1 for r in found)
    assert len({r["safety"] for r in found}) > 1
    assert told.splitlines()[-1].split()[0] == "safety"


def test_near_duplicates_point_to_the_first_of_them(output: Path) -> None:
    told = score(output, "--near-duplicates", "8")
    found = rows(output / "scores" / "near_duplicate")
    assert found[0]["near_duplicate_of"] is None
    second = found[1]
    assert (second["near_duplicate_of"], second["image_rank"]) == ("00000000-0", 1)
    hashes = [difference_hash(np.asarray(Image.open(io.BytesIO(picture(0, rank))))) for rank in (0, 1)]
    assert second["near_duplicate_bits"] == (hashes[0] ^ hashes[1]).bit_count() <= 8
    count = sum(r["near_duplicate_of"] is not None for r in found)
    assert f"{count} of 6 images nearly repeat an earlier one" in told


def test_similar_images_point_to_the_first_of_them(output: Path) -> None:
    told = score(output, "--similar", "mine_scores:Colours", "--similarity", "0.99")
    found = rows(output / "scores" / "similar")
    means = [np.asarray(Image.open(io.BytesIO(picture(row, rank)))).mean(axis=(0, 1)) for row, rank in IMAGES]
    unit = np.array([mean / np.linalg.norm(mean) for mean in means])
    assert [row["similar_of"] for row in found] == [None, "00000000-0", None, None, "00000002-0", None]
    assert found[4]["similar_cosine"] == pytest.approx(unit[3] @ unit[4], abs=1e-5)
    assert "2 of 6 images have features like those of an earlier one (column similar_of)" in told
    assert "cosine with the nearest before: 5% 0." in told
    apart = [1 - unit[0] @ unit[1], 1 - unit[3] @ unit[4]]
    assert (
        f"diversity within a prompt (1 - cosine, mean of all pairs): {np.mean(apart):.4f} "
        f"+- {abs(apart[0] - apart[1]) / 2:.4f}, 2 prompts of several images"
    ) in told
    again = score(output, "--similar", "mine_scores:Colours", "--similarity", "0.4")
    assert "5 of 6 images have features" in again, "features are kept, and compared anew"
    told = call("select", str(output), "--where", "similar_of is None", "--to", str(output.parent / "some"))
    assert told.endswith("1 of 6 images, of 1 prompts\n")


def test_every_pair_of_features_is_compared_a_block_at_a_time(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    centres = random.normal(size=(5, 8))
    vectors = (centres[random.integers(0, 5, 40)] + 0.4 * random.normal(size=(40, 8))).astype(np.float32)
    layout = OutputLayout(output)
    for chunk, own in enumerate(np.split(vectors, [13])):
        keys: dict[str, list[Any]] = {
            "row": [chunk * 100 + place for place in range(len(own))],
            "prompt_id": [""] * len(own),
            "ordinal": [0] * len(own),
            "image_rank": [0] * len(own),
        }
        columns = pa.schema([("f", pa.list_(pa.float32()))])
        write_scores(layout, chunk, "f", keys, {"f": list(own)}, columns, {"basis": {}, "data": ""})
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected: list[str | None] = []
    for place in range(40):
        firsts = [before for before in range(place) if expected[before] is None]
        best = max(firsts, key=lambda before: unit[place] @ unit[before], default=None)
        is_like = best is not None and unit[place] @ unit[best] >= 0.8
        name = None if best is None else f"{best if best < 13 else best - 13 + 100:08d}-0"
        expected.append(name if is_like else None)
    assert 5 < sum(one is not None for one in expected) < 35
    for rows_at_a_time in (7, 1000):
        monkeypatch.setattr(near_duplicates, "_ROWS_AT_A_TIME", rows_at_a_time)
        count, total, _ = near_duplicates.mark_similar(layout, "f", "like", least=0.8)
        assert [row["like_of"] for row in rows(output / "scores" / "like")] == expected
        assert (count, total) == (sum(one is not None for one in expected), 40)


def test_hashes_hold_out_noise_and_tell_pictures_apart() -> None:
    random = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((96, 96)), dtype=np.int16
    )
    noisy = np.clip(smooth + random.integers(-3, 4, smooth.shape), 0, 255).astype(np.uint8)
    other = np.asarray(Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((96, 96)))
    one = difference_hash(smooth.astype(np.uint8))
    assert (one ^ difference_hash(noisy)).bit_count() <= 4
    assert (one ^ difference_hash(other)).bit_count() > 12


def test_percentiles_and_names() -> None:
    assert percentiles([0, 0, 0, 1], [3.0, 1.0, 3.0, 9.0]) == [0.75, 0.0, 0.75, None]
    assert percentiles([0, 0, 1, 1, 1], [math.nan, 1.0, 2.0, math.nan, 3.0]) == [None, None, 0.0, None, 1.0]
    assert percentiles([0, 0, 0], [None, 2.0, 1.0]) == [None, 1.0, 0.0], "one that is not judged"
    assert [column_name(name) for name in ("hps-v2.1", "a.b:Mine")] == ["hps_v2_1", "Mine"]
