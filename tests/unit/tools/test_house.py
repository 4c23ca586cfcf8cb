"""What `make check` prints about sizes: counted right, and refused where a budget is exceeded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import house

SOURCE = '''"""A module."""

LIMIT = 3


class Public:
    def method(self) -> None: ...


def _private() -> None: ...


async def public() -> None: ...
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two rooms: a file, and a folder of two files."""
    (tmp_path / "kitchen" / "cupboard").mkdir(parents=True)
    (tmp_path / "__init__.py").touch()
    (tmp_path / "hall.py").write_text(SOURCE)
    (tmp_path / "kitchen" / "stove.py").write_text("a = 1\n" * 401)
    (tmp_path / "kitchen" / "cupboard" / "shelf.py").write_text(SOURCE)
    return tmp_path


def test_rooms_are_folders_and_files_of_the_package(package: Path) -> None:
    rooms = house.measure(package)
    lines = len(SOURCE.splitlines())
    assert {name: (sorted(room.lines), room.names) for name, room in rooms.items()} == {
        "(package)": ([0], 0),
        "hall": ([lines], 2),
        "kitchen": ([lines, 401], 2),
    }


def over_budget(rooms: dict[str, house.Room], budgets: dict[str, tuple[int, int]]) -> list[str]:
    sizes = house.room_sizes(rooms, budgets).values()
    return [size.what for pair in sizes for size in pair if size.is_over]


def test_only_what_is_over_its_budget_is_named(package: Path) -> None:
    rooms = house.measure(package)
    budgets = {"(package)": (0, 1), "hall": (20, 1), "kitchen": (100, 2)}
    assert over_budget(rooms, budgets) == ["lines of kitchen"]
    del budgets["hall"]
    assert over_budget(rooms, budgets) == ["lines of hall", "files of hall", "lines of kitchen"]


def test_the_whole_has_budgets_of_its_own(package: Path) -> None:
    whole = list(house.whole_sizes(house.measure(package), {"lines": 500, "files": 3, "names": 3}))
    assert [size.what for size in whole if size.is_over] == ["files", "public functions and classes"]
    assert {size.what: size.count for size in whole}["files over 400 lines"] == 1


def test_an_import_that_climbs_is_found() -> None:
    upside_down = {"type": "layers", "layers": ["ttsvar_ray.errors", "ttsvar_ray.config | ttsvar_ray.search"]}
    climbs = house.climbing_imports("ttsvar_ray", [{"type": "forbidden"}, upside_down])
    assert "ttsvar_ray.config.load -> ttsvar_ray.errors" in climbs


@pytest.mark.parametrize("most", [10**9, 0])
def test_the_exit_code_says_whether_a_budget_is_exceeded(
    most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ttsvar_ray").symlink_to(house.ROOT / "ttsvar_ray")
    (tmp_path / "pyproject.toml").write_text(
        (house.ROOT / "pyproject.toml").read_text().partition("[tool.house]")[0]
        + "[tool.house]\n"
        + f"lines = {most}\nfiles = {10**9}\nnames = {10**9}\n[tool.house.rooms]\n"
        + "".join(f'"{name}" = [{10**9}, {10**9}]\n' for name in house.measure(house.ROOT / "ttsvar_ray"))
    )
    monkeypatch.setattr(house, "ROOT", tmp_path)
    assert house.main() == (0 if most else 1)
    printed = capsys.readouterr().out
    assert ("over budget: lines; make it smaller" in printed) == (not most)
    assert "public functions and classes" in printed
