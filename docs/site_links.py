"""A hook of the site: links to files of the repository, which the site has not, become their paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(
    r"\[([^\]]*)\]\((?:(?P<up>\.\./)+(?P<path>[^)#]+)|(?P<own>[^):#]+\.(?:py|json|sh|ipynb)))(?:#[^)]*)?\)"
)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page's text with each link out of docs/ as a path in code letters.

    Raises:
        ValueError: a link to a file that is not there.
    """

    def path_of(match: re.Match[str]) -> str:
        path = match["path"] or f"docs/{match['own']}"
        if not (ROOT / path).exists():
            raise ValueError(f"docs/{page.file.src_uri}: links to {path}, which does not exist")
        words = match[1]
        return f"`{path}`" if words.strip("`") in path else f"{words} (`{path}`)"

    return OUTSIDE.sub(path_of, markdown)
