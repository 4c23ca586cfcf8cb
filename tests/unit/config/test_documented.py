"""The page on configuration is what the settings say."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "write_configuration.py"))["page"]()
    assert page == (DOCS / "configuration.md").read_text(encoding="utf-8"), (
        "run `python docs/write_configuration.py`"
    )
    assert "`strategy.n` | 1 |" in page
