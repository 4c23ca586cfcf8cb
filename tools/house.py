"""The size of the package beside its budget: `python -m tools.house`, part of `make check`.

Prints lines and files of each room of the package; of the whole also the public names, the median file, long
files and imports that climb. Exit code 1 where something is over its budget: growth is a decision, made in
the table `[tool.house]` of pyproject.toml. A room is a folder of the package, or a file directly in it.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LONG_FILE_LINES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What one room holds.

    Attributes:
        lines: of each file.
        names: public functions and classes at the top of its files.
    """

    lines: tuple[int, ...]
    names: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Something counted, and the most it may be; None where nothing is said."""

    what: str
    count: int
    most: int | None

    @property
    def is_over(self) -> bool:
        """Whether the budget is exceeded."""
        return self.most is not None and self.count > self.most


def public_names(source: str) -> int:
    """Count the functions and classes at the top level of a module that have no leading underscore."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return sum(
        isinstance(node, definitions) and not node.name.startswith("_") for node in ast.parse(source).body
    )


def measure(package: Path) -> dict[str, Room]:
    """Return the rooms of a package by name; what stands in its `__init__.py` is the room "(package)"."""
    files: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        room = "(package)" if room == "__init__" else room
        files.setdefault(room, []).append(path.read_text(encoding="utf-8"))
    return {
        room: Room(
            lines=tuple(len(source.splitlines()) for source in sources),
            names=sum(public_names(source) for source in sources),
        )
        for room, sources in sorted(files.items())
    }


def room_sizes(
    rooms: Mapping[str, Room], budgets: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[Size, Size]]:
    """Return lines and files of every room; a room without a budget may hold nothing.

    Args:
        rooms: as they are.
        budgets: most lines and files, by room.
    """
    sizes = {}
    for name in sorted({*rooms, *budgets}):
        lines, files = budgets.get(name, (0, 0))
        counts = rooms[name].lines if name in rooms else ()
        sizes[name] = (
            Size(what=f"lines of {name}", count=sum(counts), most=lines),
            Size(what=f"files of {name}", count=len(counts), most=files),
        )
    return sizes


def whole_sizes(rooms: Mapping[str, Room], budgets: Mapping[str, int]) -> Iterator[Size]:
    """Yield the sizes of the package as a whole, with the budgets `lines`, `files` and `names`."""
    counts = [lines for room in rooms.values() for lines in room.lines]
    names = sum(room.names for room in rooms.values())
    yield Size(what="lines", count=sum(counts), most=budgets["lines"])
    yield Size(what="files", count=len(counts), most=budgets["files"])
    yield Size(what="public functions and classes", count=names, most=budgets["names"])
    yield Size(what="lines of the median file", count=round(statistics.median(counts)), most=None)
    long = sum(lines > LONG_FILE_LINES for lines in counts)
    yield Size(what=f"files over {LONG_FILE_LINES} lines", count=long, most=None)


def climbing_imports(package: str, contracts: list[dict[str, Any]]) -> list[str]:
    """Return the chains of imports that climb, or go from sibling to sibling, as "importer -> imported".

    Args:
        package: name of the package.
        contracts: of import-linter; those of the type `layers` say what is above what.
    """
    import grimp

    graph = grimp.build_graph(package, cache_dir=None)
    chains: set[str] = set()
    for contract in contracts:
        if contract["type"] != "layers":
            continue
        layers = [grimp.Layer(*(name.strip() for name in layer.split("|"))) for layer in contract["layers"]]
        for dependency in graph.find_illegal_dependencies_for_layers(layers=layers):
            chains |= {
                " -> ".join([min(route.heads), *route.middle, min(route.tails)])
                for route in dependency.routes
            }
    return sorted(chains)


def table_of(headings: Sequence[str], rows: Mapping[str, Sequence[Size]]) -> Table:
    """Return rows of sizes, each beside its budget, under headings."""
    table = Table(
        "", *(text for heading in headings for text in (heading, "may be")), box=None, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, sizes in rows.items():
        cells: list[Text | str] = [name]
        for size in sizes:
            cells.append(Text(f"{size.count:,}", style="bold red" if size.is_over else ""))
            cells.append("" if size.most is None else f"{size.most:,}")
        table.add_row(*cells)
    return table


def main() -> int:
    """Print everything and return the exit code."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    budgets, linter = tools["house"], tools["importlinter"]
    rooms = measure(ROOT / linter["root_package"])
    climbs = climbing_imports(linter["root_package"], linter["contracts"])
    by_room = room_sizes(rooms, budgets["rooms"])
    whole = [
        *whole_sizes(rooms, budgets),
        Size(what="imports that climb", count=len(climbs), most=0),
    ]
    console = Console()
    console.print(table_of(("lines", "files"), by_room), "")
    console.print(table_of(("whole package",), {size.what: (size,) for size in whole}))
    for climb in climbs:
        print(f"climbs: {climb}")
    every = [size for sizes in by_room.values() for size in sizes] + whole
    over = [size.what for size in every if size.is_over]
    if over:
        print(
            f"over budget: {', '.join(over)}; make it smaller, or decide on more: pyproject.toml [tool.house]"
        )
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
