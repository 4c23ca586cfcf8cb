"""The page of a run in a browser: no errors, search, order, the tree opens. Skipped where no Chromium is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.report.test_page import entries, summary
from ttsvar_ray.report import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def shown(file: Path, place: str, profile: Path) -> str:
    """Return the page after its scripts ran."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"{file.as_uri()}#{place}",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


def cards(text: str) -> list[str]:
    return re.findall(r'<button class="card".*?<span>(.*?)</span>', text, re.DOTALL)


@pytest.mark.parametrize("inline_prompts", [1000, 10])
def test_the_page_in_a_browser(inline_prompts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "INLINE_PROMPTS", inline_prompts)
    file = tmp_path / "my report.html"
    page.write_page(file, summary(130), entries(130))
    text = shown(file, "query=prompt+12&order=best&open=121", tmp_path / "profile")
    assert cards(text) == [f"prompt {number}" for number in (*range(129, 119, -1), 112, 12)]
    assert len(re.findall(r"image/webp;base64,\w", text)) == 12 + 2, "of cards and the open prompt"
    dialog = text[text.index("<dialog") : text.index("</dialog>")]
    assert 'open=""' in dialog
    assert "<svg></svg>" in dialog
    assert re.findall(r"rank \d: [\w.]+", dialog) == ["rank 0: 12.1000", "rank 1: none"]
    assert "colours" in dialog
    # Ten prompts by a column: numbers by size, equal ones in the order of the file, the one without last.
    text = shown(file, "query=prompt+12&order=by+size", tmp_path / "profile")
    assert cards(text) == [
        f"prompt {number}" for number in (112, 126, 120, 127, 121, 128, 122, 129, 123, 124, 125, 12)
    ]
    assert re.findall(r"<option>(.*?)</option>", text) == ["by tag", "by size"]
