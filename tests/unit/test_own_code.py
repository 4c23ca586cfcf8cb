"""A user's own code by import path: found, digested, or refused with what was looked for."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pyarrow as pa
import pytest

from ttsvar_ray.errors import ConfigurationError, own_line
from ttsvar_ray.own_code import is_own, load_own, load_own_class

SOURCE = """
import abc
import json

class Liked:
    class Inner:
        pass

    def score(self, images, texts):
        return [0.0 for _ in images]

class Taught(Liked):
    def __init__(self, *, device):
        self.device = device

class Whole(Taught):
    def preprocess(self, images): ...
    def encode_text(self, texts): ...

class Abstract(Whole, abc.ABC):
    @abc.abstractmethod
    def score(self, images, texts): ...

def function():
    return 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the Python path with one module, forgotten again afterwards."""
    (tmp_path / "own_liking.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_class_is_found_with_the_digest_of_its_file(folder: Path) -> None:
    own = load_own("own_liking:Liked", setting="reward.name")
    assert own.object.__name__ == "Liked"
    assert own.path == "own_liking:Liked"
    assert own.source_digest == hashlib.sha256((folder / "own_liking.py").read_bytes()).hexdigest()


def test_a_class_inside_a_class_and_a_module_inside_a_package(folder: Path) -> None:
    package = folder / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def make(): return 1\n")
    assert load_own("own_liking:Liked.Inner", setting="x").object.__name__ == "Inner"
    assert load_own("own_package.inner:make", setting="x").object() == 1


def test_a_class_that_a_package_hands_on_is_digested_where_it_stands_too(folder: Path) -> None:
    (folder / "own_front.py").write_text("from own_liking import Liked\n")
    first = load_own("own_front:Liked", setting="x").source_digest
    (folder / "own_liking.py").write_text(SOURCE + "\n# changed\n")
    assert load_own("own_front:Liked", setting="x").source_digest != first


def test_another_source_is_another_digest(folder: Path) -> None:
    first = load_own("own_liking:Liked", setting="x").source_digest
    (folder / "own_liking.py").write_text(SOURCE + "\n# changed\n")
    assert load_own("own_liking:Liked", setting="x").source_digest != first


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_liking", "expected an import path such as package.module:Name, got 'own_liking'"),
        ("own_liking:", "expected an import path"),
        (":Liked", "expected an import path"),
        ("own liking:Liked", "expected an import path"),
        ("own_liking:Liked:Inner", "expected an import path"),
        ("own_liking:Likes", "module 'own_liking' has no 'Likes'; did you mean 'Liked'"),
        (
            "own_liking:Zebra",
            "has no 'Zebra'; it has Abstract, Liked, Taught, Whole, abc, function, json",
        ),
        ("own_liking:Liked.Outer", "has no 'Outer'"),
        ("own_lking:Liked", "no module 'own_lking' on the Python path or in "),
        ("no_such_package.module:Liked", "no module 'no_such_package'"),
        (
            "own_broken:Liked",
            "fails while it is imported (ZeroDivisionError: division by zero [own_broken.py, line 1])",
        ),
        ("own_program:Liked", "fails while it is imported (SystemExit: 2 [own_program.py, line 2])"),
        ("own_needy:Liked", "'own_needy' imports 'no_such_thing', which is not installed"),
        ("sys:stdout", "expected a module with a source file"),
        ("__main__:Liked", "expected a module that workers can import"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(folder: Path, path: str, said: str) -> None:
    (folder / "own_broken.py").write_text("1 / 0\n")
    (folder / "own_program.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['x'])\n")
    (folder / "own_needy.py").write_text("import no_such_thing\n")
    with pytest.raises(ConfigurationError) as refused:
        load_own(path, setting="reward.name")
    assert str(refused.value).startswith("reward.name: ")
    assert said in str(refused.value)


def test_a_class_with_its_methods_and_arguments_is_taken(folder: Path) -> None:
    own = load_own_class(
        "own_liking:Taught", methods=["score"], given={"device": "cpu"}, setting="x", what="a reward"
    )
    assert own.make(setting="x").device == "cpu"


@pytest.mark.parametrize(
    ("path", "arguments", "said"),
    [
        (
            "own_liking:Liked",
            {},
            "methods score, preprocess, encode_text; own_liking:Liked has no preprocess, encode_text",
        ),
        ("own_liking:Abstract", {}, "own_liking:Abstract has no score"),
        ("own_liking:function", {}, "expected a class, got own_liking:function, a function"),
        (
            "own_liking:Whole",
            {"device": "cpu", "depth": 3},
            "with device, depth as keywords, which it does not take so: got an unexpected keyword argument",
        ),
        ("own_liking:Whole", {}, "missing a required argument: 'device'"),
    ],
)
def test_a_class_that_cannot_serve_is_refused(
    folder: Path, path: str, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_own_class(
            path,
            methods=["score", "preprocess", "encode_text"],
            given=arguments,
            setting="reward.name",
            what="a reward",
        )
    assert str(refused.value).startswith("reward.name: ")
    assert said in str(refused.value)


def test_an_option_that_is_given_already_is_refused(folder: Path) -> None:
    taught = {"methods": ["score"], "given": {"device": "cpu"}, "setting": "reward.name", "what": "a reward"}
    with pytest.raises(ConfigurationError, match=r"reward\.options: device is given already"):
        load_own_class("own_liking:Taught", options={"device": "cuda"}, **taught)


def test_an_installed_command_finds_a_module_in_the_current_folder(folder: Path) -> None:
    program = (
        f"import sys; sys.path = [entry for entry in sys.path if entry not in ('', {str(folder)!r})]\n"
        "from ttsvar_ray.own_code import load_own\n"
        "print(load_own('own_liking:Liked', setting='x').object.__name__)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "Liked", done.stderr


@pytest.mark.parametrize(("name", "own"), [("image-reward", False), ("auto", False), ("a.b:C", True)])
def test_only_import_paths_hold_a_colon(name: str, own: bool) -> None:
    assert is_own(name) is own


def test_a_line_of_a_compiled_library_is_not_taken_for_the_users(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        pa.OSFile(str(tmp_path / "absent"))
    assert any(frame.filename.endswith(".pxi") for frame in traceback.extract_tb(failed.value.__traceback__))
    assert re.fullmatch(r" \[test_own_code\.py, line \d+\]", own_line(failed.value))
