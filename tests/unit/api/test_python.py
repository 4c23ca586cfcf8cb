"""The package from Python, on the built-in model in this process."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

import ttsvar_ray
from tests.support.small_search import PROMPT, small_search
from ttsvar_ray import Result, Search, generate, load
from ttsvar_ray.api.results import NoImageError
from ttsvar_ray.api.tree import SearchTree
from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.prompts.identity import prompt_id_of
from ttsvar_ray.results import FinalImage, ResultImage, SelectionRecord
from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.operators.top_k import TopK


@pytest.fixture(scope="module")
def search() -> Search:
    return small_search()


@pytest.fixture(scope="module")
def results(search: Search) -> list[Result]:
    return search.run([PROMPT, {"prompt": PROMPT, "id": "again"}, PROMPT])


def test_what_the_docs_show_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[3] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "cluster" not in block
    ]
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102 - our own text
    assert names["results"][0].image.size == (48, 48)
    assert all(place == 0 for place in names["control"][0].lineage)
    assert "winner: slots" in capsys.readouterr().out


def test_importing_the_package_imports_no_network_and_no_cluster() -> None:
    code = (
        "import sys, ttsvar_ray; ttsvar_ray.__version__; ttsvar_ray.generate; ttsvar_ray.load; "
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(hasattr(ttsvar_ray, name) for name in ttsvar_ray.__all__)
    assert set(ttsvar_ray.__all__) <= set(dir(ttsvar_ray))
    with pytest.raises(AttributeError, match="it has FoundImage"):
        ttsvar_ray.sample  # noqa: B018


def test_results_come_in_the_order_of_the_prompts(results: list[Result]) -> None:
    assert [(result.prompt, result.prompt_id) for result in results] == [
        (PROMPT, prompt_id_of(PROMPT)),
        (PROMPT, "again"),
        (PROMPT, prompt_id_of(PROMPT)),
    ]
    first, again, repeated = (np.asarray(result.image) for result in results)
    assert first.shape == (48, 48, 3)
    assert (first != again).any()
    assert (first != repeated).any(), "equal ids are told apart"


def test_a_text_gives_the_image_that_it_gives_in_a_prompt_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(f"{PROMPT}\n{PROMPT}\n")
    told = ["generate", "--strategy", "raw", "--seed", "3", "--in-process", "--set", "engine.threads=1"]
    paths = ["--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, [*told, *paths])
    assert ran.exit_code == 0, ran.output
    here = generate([PROMPT, f" {PROMPT}\n"], strategy="raw", seed=3, settings={"engine.threads": 1})
    for mine, theirs in zip(here, load(tmp_path / "out"), strict=True):
        assert (mine.prompt, mine.prompt_id) == (theirs.prompt, theirs.prompt_id)
        assert [image.encoded for image in mine.images] == [image.encoded for image in theirs.images]


def test_a_result_holds_its_search(results: list[Result]) -> None:
    result = results[0]
    assert result.reward == result.images[0].reward == result.images[0].reward_history[-1]
    assert result.tree is not None
    assert result.tree.winner == result.lineage
    assert [level.operator for level in result.tree.levels] == ["cluster", "resample", ""]
    assert [level.population for level in result.tree.levels] == [3, 2, 1]
    assert str(result.tree).startswith("scale 5: cluster, 3 to 2, keeps ")
    assert PROMPT in result._repr_html_()


class Reddest(PlainReward):
    """Likes red."""

    name = "reddest"

    def score(self, images: Any, texts: Any) -> Any:
        """Return the share of red."""
        return images[..., 0].mean(axis=(1, 2), dtype=np.float32) / 255


class Leaving(Reddest):
    """Ends the program that it runs in, as scripts do where something is missing."""

    def score(self, images: Any, texts: Any) -> Any:
        """Leave."""
        raise SystemExit(3)


@dataclass(frozen=True, kw_only=True)
class LeavingTopK(TopK):
    """An operator that does."""

    name: ClassVar[str] = "leaving-top-k"

    def select(self, *_: Any) -> Any:
        """Leave."""
        raise SystemExit("no key")


def test_code_of_ones_own_that_leaves_costs_the_prompt_and_not_the_run() -> None:
    by_reward = generate(["a red ring"], reward=Leaving(), device="cpu", settings={"engine.threads": 1})
    assert re.fullmatch(r".*: SystemExit: 3 \[test_python\.py, line \d+\]", str(by_reward[0].error))
    by_operator = generate(
        ["a red ring"], selections={6: LeavingTopK()}, device="cpu", settings={"engine.threads": 1}
    )
    assert re.search(
        r"failed \(SystemExit: no key \[test_python\.py, line \d+\]\)", str(by_operator[0].error)
    )


class Nameless:
    """Has the one method that its author thought of."""

    def score(self, images: Any, texts: Any) -> Any:
        """Return nothing of use."""


def test_an_object_that_is_none_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(
        ConfigurationError, match=r"Nameless has no .*name; derive it from .*PlainReward"
    ) as caught:
        Search("shapes", reward=Nameless(), extractor=object())  # type: ignore[arg-type]
    assert "extractor: expected an object with extract" in str(caught.value)
    with pytest.raises(
        ConfigurationError, match="reward: expected an object, got the class Reddest; make one"
    ):
        Search("shapes", reward=Reddest)  # type: ignore[arg-type]


def test_an_extractor_that_no_selection_reads_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="extractor: no selection of this plan reads features"):
        Search("shapes", extractor="pool", device="cpu")


def test_a_result_is_shown_without_its_bytes(results: list[Result]) -> None:
    assert len(repr(results[0])) < 1000
    assert f"reward={results[0].reward!r}" in repr(results[0])


def test_the_notebook_runs_from_top_to_bottom() -> None:
    notebook = json.loads(
        (Path(__file__).parents[3] / "docs/examples/search.ipynb").read_text(encoding="utf-8")
    )
    names: dict[str, Any] = {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        exec(compile(cell, "docs/examples/search.ipynb", "exec"), names)  # noqa: S102 - our own text
    assert "<svg" in names["result"]._repr_html_()
    red = names["Redness"]().score(np.asarray(names["red"].image)[None], [""])
    assert names["red"].reward == pytest.approx(red[0], abs=1e-6)
    assert names["accuracy"](names["mine"]) >= 0.5
    assert not any(cell.get("outputs") for cell in notebook["cells"])


def test_a_reward_object_scores_the_images() -> None:
    one = generate(PROMPT, strategy="best-of-n", n=2, reward=Reddest(), device="cpu", keep="all", seed=1)[0]
    red = [float(np.asarray(image.image)[..., 0].mean()) / 255 for image in one.images]
    assert red == pytest.approx([image.reward for image in one.images], abs=1e-6)
    assert red == sorted(red, reverse=True)
    with pytest.raises(ConfigurationError, match=r"reward: an object is given.*reward\.path"):
        Search(reward=Reddest(), settings={"reward.path": "folder"})
    with pytest.raises(ConfigurationError, match=r"import path such as '.*:Reddest'"):
        generate(PROMPT, reward=Reddest(), output="unwritten")


@dataclasses.dataclass(frozen=True)
class LastOnes(Operator):
    """Keeps the last trajectories."""

    name: ClassVar[str] = "last-ones"
    reads: ClassVar[frozenset[Signal]] = frozenset()

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Choose the highest slots."""
        return Choice(ancestor_index=np.arange(evidence.population - count, evidence.population))


def test_an_operator_object_selects() -> None:
    survivors = {"strategy.batch_schedule": [3] * 5 + [2] * 3 + [1] * 5, "engine.threads": 1}
    search = Search(device="cpu", selections={5: LastOnes(), 8: "top-k"}, settings=survivors)
    (result,) = search.run(PROMPT)
    assert result.tree is not None
    assert [level.operator for level in result.tree.levels] == ["last-ones", "top-k", ""]
    assert result.tree.levels[0].kept == (1, 2)
    with pytest.raises(
        ConfigurationError, match=r"selections\[5\]: expected .* import path such as '.*:LastOnes'"
    ):
        generate(PROMPT, selections={5: LastOnes()}, output="unwritten")
    with pytest.raises(ConfigurationError, match=r"strategy\.selections"):
        Search(device="cpu", selections={5: "best"})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"settings": {"strategy.lamda": 5}}, "did you mean 'lambda'"),
        ({"n": 0}, r"strategy\.n: expected at least 1"),
        ({"selections": [{"scale": 6, "operator": "top-k"}]}, r"selections: expected an operator by scale"),
        ({"keep": "some"}, r"output\.keep"),
        ({"address": "auto"}, "say where, output="),
        ({"prompts": [" "]}, r"prompts\[0\]: expected a text"),
        ({"prompts": [{"id": "x"}]}, r"prompts\[0\]: expected a text, or a mapping"),
        ({"prompts": [PROMPT, 5]}, r"prompts\[1\]: expected a text, or a mapping"),
        ({"prompts": ["half \ud800"]}, r"prompts\[0\]: .* half of a surrogate pair"),
        ({"prompts": ["a\0ring"]}, r"prompts\[0\]: .* NUL character"),
        ({"prompts": ["\u200b"]}, r"prompts\[0\]: .* got a blank"),
        ({"prompts": [{"prompt": PROMPT, "id": ""}]}, r"prompts\[0\]: .* expected an id"),
        ({"prompts": [{"prompt": PROMPT, "id": True}]}, r"prompts\[0\]: .* expected an id"),
        ({"prompts": [{"prompt": PROMPT, "id": "a\nb"}]}, r"prompts\[0\]: .* printable"),
        ({"prompts": {"prompt": ""}}, r"prompts\[0\]: .* got a blank"),
        (
            {"prompts": [{"prompt": PROMPT, "day": date.min}], "output": "unwritten"},
            r"prompts\[0\]: .* date is",
        ),
        ({"prompts": [{"prompt": PROMPT, "id": ["x"]}]}, r"prompts\[0\]: expected a text, or a mapping"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        generate(arguments.pop("prompts", PROMPT), **arguments)


def test_a_failed_prompt_says_why_and_has_no_picture() -> None:
    class Broken(Reddest):
        def score(self, images: Any, texts: Any) -> Any:
            return np.full(len(images), np.nan, dtype=np.float32)

    failed = generate(PROMPT, strategy="raw", reward=Broken(), device="cpu")[0]
    assert (failed.images, failed.tree) == ((), None)
    assert "NaN" in failed.error or "finite" in failed.error
    with pytest.raises(NoImageError, match="has no image"):
        failed.image  # noqa: B018
    assert "no image" in failed._repr_html_()


def test_the_picture_of_a_tree_shows_every_trajectory_and_the_winners_line() -> None:
    def image(rank: int, reward: float, lineage: tuple[int, ...]) -> ResultImage:
        final = FinalImage.of_bytes(b"", width=1, height=1, image_format="png")
        return ResultImage(
            rank=rank, image=final, reward=reward, reward_history=(reward,), lineage=lineage, bits=()
        )

    trace = [
        SelectionRecord(
            prompt_key="p",
            scale_index=2,
            kind="my <operator>",
            ancestor_index=(0, 3, 3),
            rewards=(0.1, float("nan"), -0.2, 0.9),
        )
    ]
    tree = SearchTree.of(trace, [image(0, 0.8, (3, 2)), image(1, 0.7, (3, 1))])
    drawn = ET.fromstring(tree.svg())  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    circles, lines = drawn.findall(f"{space}circle"), drawn.findall(f"{space}line")
    assert (len(circles), len(lines)) == (4 + 3, 3)
    assert [line.get("stroke-width") for line in lines] == ["1", "1", "3"]
    told = [circle.findtext(f"{space}title") for circle in circles]
    assert told[1] == "trajectory 1, dropped"
    assert told[3] == "trajectory 3, kept, reward 0.9000"
    assert told[4] == "trajectory 0, kept", "its image was not kept, so nothing is known of its reward"
    assert "my <operator>" in [text.text for text in drawn.findall(f"{space}text")]


def test_the_rounds_of_an_adaptive_search_stand_one_under_another() -> None:
    def record(round_index: int, scale: int, kept: tuple[int, ...], *rewards: float) -> SelectionRecord:
        return SelectionRecord(
            prompt_key="p",
            scale_index=scale,
            kind="keep",
            ancestor_index=kept,
            rewards=rewards,
            round_index=round_index,
        )

    image = ResultImage(
        rank=0,
        image=FinalImage.of_bytes(b"", width=1, height=1, image_format="png"),
        reward=0.5,
        reward_history=(0.2, 0.4, 0.5),
        lineage=(1, 0, 0),
        bits=(),
        round_index=1,
    )
    # The second round was abandoned, too, and its better trajectory finished.
    trace = [record(0, 3, (), 0.0, 0.1), record(1, 3, (), 0.1, 0.2), record(1, 6, (0,), 0.4)]
    tree = SearchTree.of(trace, [image])
    assert [(level.kept, level.rewards) for level in tree.levels[:2]] == [((1,), (0.1, 0.2)), ((0,), (0.4,))]
    first, second = str(tree).split("round 2: the best image\n")
    assert first.startswith("round 1: abandoned at scale 3\nscale 3: keep, 2 to 0, keeps")
    assert "winner" not in first
    assert second.startswith("scale 3: keep, 2 to 1, keeps 1")
    drawn = ET.fromstring(tree.svg())  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in drawn.findall(f"{space}text")] == [
        "round 1: abandoned at scale 3",
        "round 2: the best image",
    ]
    above, below = drawn.findall(f"{space}g")
    circles = [[*one.iter(f"{space}circle")] for one in (above, below)]
    assert [len(one) for one in circles] == [2, 2 + 1 + 1]
    assert {circle.get("fill") for circle in circles[0]} == {"none"}, "all of an abandoned round are dropped"


def test_an_argument_that_there_is_not_is_refused_as_python_does() -> None:
    for call in (lambda: Search(strateggy="raw"), lambda: generate("a star", strateggy="raw")):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'strateggy'"):
            call()
