"""What the model reads in place of a prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ttsvar_ray import Search, load
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.load import load_config
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import ConfigurationError, OutputError
from ttsvar_ray.prompts import BadLine, PromptSource, read_prompts, scan_prompts
from ttsvar_ray.prompts.rewrite import rewriter_of
from ttsvar_ray.report.check import check_folder

LINES = [
    {"prompt": "a ring", "better": "a photo of a ring"},
    {"prompt": "a bar", "better": "a photo of a bar"},
    {"prompt": "a moon", "better": None},
]
RAW = ["strategy.name=raw", "engine.threads=1", "cluster.in_process=true", "model.device=cpu"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES))
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_rewriter.py"
    path.write_text(
        "def better(prompt):\n    return f'a photo of {prompt}'\n\ndef empty(prompt):\n    return ''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("my_rewriter", None)
    rewriter_of.cache_clear()


def test_a_template_names_the_prompt_and_columns(prompts: Path) -> None:
    bad: list[BadLine] = []
    source = PromptSource(path=str(prompts), rewrite="{better}, large ({prompt})")
    found = list(read_prompts(source, bad.append))
    assert [prompt.text for prompt in found] == ["a ring", "a bar"]
    assert [prompt.model_text for prompt in found] == [
        "a photo of a ring, large (a ring)",
        "a photo of a bar, large (a bar)",
    ]
    assert [(one.line, one.reason) for one in bad] == [
        (3, "prompts.rewrite: no text in 'better', which the template names")
    ]


def test_another_rewriting_is_another_prompt_set(prompts: Path) -> None:
    digests = {
        scan_prompts(PromptSource(path=str(prompts), rewrite=rewrite)).digest
        for rewrite in (None, "{prompt}", "{prompt}!")
    }
    assert len(digests) == 3


def test_a_function_of_ones_own(prompts: Path, module: Path) -> None:
    source = PromptSource(path=str(prompts), rewrite="my_rewriter:better")
    assert [prompt.model_text for prompt in read_prompts(source)][2] == "a photo of a moon"
    bad: list[BadLine] = []
    with pytest.raises(Exception, match="none of its 3 lines"):
        list(read_prompts(PromptSource(path=str(prompts), rewrite="my_rewriter:empty"), bad.append))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{0}", "names of columns in braces"),
        ("{prompt", "expected a template such as"),
        ("{prompt.text}", "names of columns in braces"),
        ("no_such_module:f", "prompts.rewrite"),
        ("plain words", "prompts.rewrite: expected an import path"),
        ("json:JSONDecodeError.colno", "prompts.rewrite"),
    ],
)
def test_what_rewrites_nothing_is_refused_before_anything_starts(setting: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Search("shapes", device="cpu", settings={"prompts.rewrite": setting})


def test_rows_say_what_the_model_read_and_the_reward_judges_by_the_prompt(
    prompts: Path, module: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    settings = [
        *RAW,
        f"prompts.path={prompts}",
        f"output.path={output}",
        "output.bits=true",
        "prompts.columns=[]",
    ]
    settings += ["prompts.rewrite=my_rewriter:better"]
    run_job(load_config(None, settings))
    rows = pq.read_table(output / "data").to_pylist()
    assert [(row["prompt"], row["prompt_used"]) for row in rows] == [
        (line["prompt"], f"a photo of {line['prompt']}") for line in LINES
    ]
    assert not check_folder(OutputLayout(output)).problems
    manifest = json.loads((output / "run.json").read_text())
    assert any("code.rewrite.my_rewriter:better" in str(value) for value in manifest.values())
    # The same pictures as those of the longer text under the shorter one's id, but scored by the shorter.
    search = Search(
        "shapes", strategy="raw", device="cpu", settings={"prompts.rewrite": "a photo of {prompt}"}
    )
    ids = [{"prompt": row["prompt"], "id": row["prompt_id"]} for row in rows]
    assert [one.best.encoded for one in search.run(ids)] == [row["image"]["bytes"] for row in rows]
    plain = Search("shapes", strategy="raw", device="cpu")
    longer = plain.run([{"prompt": row["prompt_used"], "id": row["prompt_id"]} for row in rows])
    assert [one.best.encoded for one in longer] == [row["image"]["bytes"] for row in rows]
    assert [one.reward for one in longer] != [row["reward"] for row in rows]
    assert load(output)[0].prompt_used == "a photo of a ring"
    module.write_text(module.read_text() + "\n# changed\n")
    with pytest.raises(OutputError, match="other settings"):
        run_job(load_config(None, [*settings, "prompts.limit=2"]))
