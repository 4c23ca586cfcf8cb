"""How the default tests are shared out between three processes (pytest-xdist).

A file stays together, for its fixtures; so do all of `tests/integration`, for their one Ray cluster, and all
of `tests/end_to_end`, so that no more than two clusters run at a time. What takes long begins first, so that
the end is even.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadFileScheduling

PROCESSES = 3
"""One more than a small machine has cores: those that start clusters wait for them half of their time."""

TOGETHER = ("tests/integration/", "tests/end_to_end/")

LONG = (*TOGETHER, "tests/property/test_coordinator.py", "tests/property/", "tests/unit/cli/")
"""What begins first, in this order."""


def is_whole_suite(config: pytest.Config) -> bool:
    """Whether all default tests were asked for: no path, and no markers but the usual ones."""
    default_markers = config.option.markexpr in config.getini("addopts")
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and default_markers


def long_ones_first(items: list[pytest.Item]) -> None:
    """Sort tests by `LONG`; otherwise they stay as they are."""

    def place(item: pytest.Item) -> int:
        return next((i for i, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG))

    items.sort(key=place)


class FilesTogether(LoadFileScheduling):
    """Hands out files in the order of the tests."""

    def schedule(self) -> None:
        """Share out; not by the number of tests in a file, which says nothing of its time."""
        self.config.option.loadscopereorder = False
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return next((path for path in TOGETHER if nodeid.startswith(path)), super()._split_scope(nodeid))
