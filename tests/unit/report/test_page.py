"""The page of a run: what it holds, and that nothing in a prompt is run. The browser reads it in
tests/end_to_end/test_report.py."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ttsvar_ray.report import page
from ttsvar_ray.report.page import Entry, Summary, histogram, write_page

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(1)> {{DATA}}"


def png(colour: tuple[int, int, int], size: int = 300) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, format="PNG")
    return file.getvalue()


def entries(count: int) -> Iterator[Entry]:
    for number in range(count):
        yield Entry(
            prompt_id=f"id {number}",
            prompt=HOSTILE if number == 1 else f"prompt {number}",
            rewards=[number / 10, float("nan")],
            histories=[[0.5, float("nan"), number / 10], []],
            images=[png((number % 256, 0, 0)), png((0, number % 256, 0), size=10)],
            tree="<svg></svg>",
            columns={"tag": "colours", "nothing": None, "size": None if number == 12 else 0.3 * (number % 7)},
        )


def summary(count: int) -> Summary:
    return Summary(
        title="out <b>",
        facts=[("model", HOSTILE)],
        settings={"seed": 0, "reward.name": HOSTILE},
        failures=[(HOSTILE, "no reward & no image")],
        failed=count,
        prompts=count,
    )


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    result: dict[str, Any] = json.loads(found.group(1))
    return result


def test_a_small_run_is_one_file(tmp_path: Path) -> None:
    written = write_page(tmp_path / "report.html", summary(3), entries(3))
    assert written == [tmp_path / "report.html"]
    assert list(tmp_path.iterdir()) == written
    text = written[0].read_text(encoding="utf-8")
    data = data_of(text)
    assert data["folder"] is None
    assert [row[:3] for row in data["rows"]] == [
        ["id 0", "prompt 0", 0.0],
        ["id 1", HOSTILE, 0.1],
        ["id 2", "prompt 2", 0.2],
    ]
    assert data["rows"][0][3] == {"tag": "colours", "size": "0.0"}
    assert "<summary>3 prompts without an image, the first 1</summary>" in text
    assert re.findall(r"""<[^>]*(?:src|href)=["']?[a-z]+:""", text) == [], "nothing is fetched"


def test_nothing_in_a_prompt_is_markup(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", summary(3), entries(3))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("</script>") == text.count("<script"), "no text ends a script"
    assert "<title>out &lt;b&gt;</title>" in text


def test_a_large_run_keeps_its_pictures_beside_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "INLINE_PROMPTS", 10)
    write_page(tmp_path / "my report.html", summary(130), entries(130))
    text = (tmp_path / "my report.html").read_text(encoding="utf-8")
    data = data_of(text)
    assert (data["folder"], len(data["rows"])) == ("my report_files", 130)
    scripts = sorted((tmp_path / "my report_files").iterdir())
    assert [script.name for script in scripts] == [f"prompts-{number:05d}.js" for number in range(3)]
    found = re.fullmatch(r"ttsvarScript\((\d+),(.*)\);", scripts[2].read_text(encoding="utf-8"))
    assert found
    assert found.group(1) == "2"
    details = json.loads(found.group(2))
    assert len(details) == 130 - 2 * data["perScript"]
    assert details[0]["rewards"] == [12.0, None]
    assert details[0]["histories"] == [[0.5, None, 12.0], []]
    assert len(text) < 60_000, "no picture in the page itself"


def test_pictures_are_made_small_enough_and_never_enlarged(tmp_path: Path) -> None:
    import base64

    write_page(tmp_path / "report.html", summary(1), entries(1))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = re.search(r"ttsvarScript\(0,(.*?)\);</script>", text, re.DOTALL)
    assert found
    images = json.loads(found.group(1))[0]["images"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(image))).size for image in images]
    assert sizes == [(256, 256), (10, 10)]


@pytest.mark.parametrize(
    ("rewards", "bars"), [([], 0), ([0.5], 1), ([0.0, 1.0], 2), ([0.1] * 9 + [0.9], 2), ([3.0, 3.0], 1)]
)
def test_the_histogram_has_a_bar_for_each_bin_with_rewards(rewards: list[float], bars: int) -> None:
    drawn = histogram(rewards)
    assert drawn.count("<rect") == bars
    counted = [int(count) for count in re.findall(r": (\d+)</title>", drawn)]
    assert sum(counted) == len(rewards)
