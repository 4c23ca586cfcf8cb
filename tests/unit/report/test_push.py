"""A run that is pushed is there, whole and once, whatever stopped it; with a card that says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
import huggingface_hub
import pytest
import yaml
from huggingface_hub import HfApi, constants
from typer.testing import CliRunner

from tests.support.tiny_jobs import PROMPTS, job, write_prompts
from tests.support.writable_hub import TOKEN, WritableHub, serve
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.push import published
from ttsvar_ray.dataset.card import card_text
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, read_manifest
from ttsvar_ray.dataset.trace import trace_schema
from ttsvar_ray.errors import ConfigurationError, OutputError, RunFailedError
from ttsvar_ray.report import push as push_module
from ttsvar_ray.report.push import PushedFile, PushReport, push

NAME = "me/rings"

# Of what huggingface_hub does with its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six parts."""
    folder = tmp_path_factory.mktemp("run")
    job(write_prompts(folder / "p.jsonl"), folder / "out", cluster={"workers": 1, "in_process": True})
    return folder / "out"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    # Its other protocol is a service of its own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(push_module, "PARTS_PER_COMMIT", 2)
    # Parts go as files, as those of usual size do.
    monkeypatch.setattr(push_module, "_SMALL_BYTES", 0)
    with serve(WritableHub()) as hub:
        # As HF_ENDPOINT does.
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def sent(output: Path, hub: WritableHub, *, is_public: bool = False, token: str = TOKEN) -> PushReport:
    layout = OutputLayout(output)
    manifest = read_manifest(layout)
    assert manifest is not None
    return push(
        layout,
        manifest,
        NAME,
        api=HfApi(endpoint=hub.endpoint, token=token),
        own=[PushedFile.of("README.md", card(output).encode())],
        is_public=is_public,
    )


def known(output: Path) -> RunManifest:
    manifest = read_manifest(OutputLayout(output))
    assert manifest is not None
    return manifest


def card(output: Path, manifest: RunManifest | None = None) -> str:
    of = manifest or known(output)
    told = published(OutputLayout(output), of, repository=NAME, licence="cc-by-4.0", model_licence=None)
    return card_text(of, has_trace=True, publication=told)


def head(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def files_of(output: Path) -> dict[str, bytes]:
    names = ["run.json", "sessions.jsonl"]
    paths = [output / name for name in names]
    for folder in ("data", "trace", "manifest", "failed"):
        paths += sorted((output / folder).iterdir())
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}
    # Of the folders in which the run was made only the last names are everybody's business.
    return {**files, "run.json": files["run.json"].replace(f'"{output.parent}/'.encode(), b'"')}


def test_a_push_that_is_stopped_in_the_middle_goes_on_and_sends_nothing_twice(
    output: Path, hub: WritableHub
) -> None:
    hub.breaks_after = 7
    with pytest.raises(ConfigurationError, match="me/rings: the hub refuses"):
        sent(output, hub)
    there = hub.repositories[NAME]
    assert there.commits == ["The run", "Parts up to part-00001.parquet"]
    assert "README.md" not in there.files, "half a data set does not say that it is whole"
    hub.breaks_after = None
    found = sent(output, hub)
    assert there.commits[2:] == [
        "Parts up to part-00003.parquet",
        "Parts up to part-00005.parquet",
        "The card",
    ]
    assert len(hub.uploads) == len(set(hub.uploads)) == 12
    assert there.is_private
    wanted = {**files_of(output), "README.md": card(output).encode()}
    assert there.files == wanted
    assert (found.files, found.commits) == (len(wanted), 3)
    before = len(hub.uploads)
    again = sent(output, hub)
    assert (again.sent, again.sent_bytes, again.commits, len(hub.uploads)) == (0, 0, 0, before)


def test_a_hub_that_is_away_leaves_the_push_to_be_gone_on_with(
    output: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    layout = OutputLayout(output)
    manifest = read_manifest(layout)
    assert manifest is not None
    monkeypatch.setattr(api, "create_commit", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(RunFailedError, match=r"cannot be used \(OSError: no route.*\); what is there stays"):
        push(layout, manifest, NAME, api=api, own=[])


def test_what_the_output_no_longer_has_is_removed(output: Path, hub: WritableHub) -> None:
    sent(output, hub)
    files = hub.repositories[NAME].files
    files["failed/part-00003.jsonl"] = b"{}\n"
    files["notes.md"] = b"somebody's own"
    sent(output, hub)
    assert "failed/part-00003.jsonl" not in files
    assert "notes.md" in files


def test_an_output_in_an_object_store_is_sent_through_copies(output: Path, hub: WritableHub) -> None:
    root = f"memory://{output.name}-pushed"
    layout = OutputLayout(root)
    for path in sorted(output.rglob("*")):
        if path.is_file():
            fsspec.filesystem("memory").pipe(
                f"{layout.root.path}/{path.relative_to(output)}", path.read_bytes()
            )
    manifest = read_manifest(layout)
    assert manifest is not None
    push(layout, manifest, NAME, api=HfApi(endpoint=hub.endpoint, token=TOKEN), own=[])
    assert hub.repositories[NAME].files == files_of(output)
    assert len(hub.uploads) == 12


def test_no_folder_of_the_machine_is_published(output: Path, hub: WritableHub, tmp_path: Path) -> None:
    moved = tmp_path / "out"
    shutil.copytree(output, moved)
    run = json.loads((moved / "run.json").read_text())
    for section in (run["config"]["model"], run["content"]):
        section.update({key: "/home/me/models/mine/" for key in ("name", "model.name") if key in section})
    run["content"]["weights.transformer"] = "sha256:abc"
    run["config"]["model"]["path"] = "~/weights"
    run["config"]["prompts"]["rewrite"] = "/imagine {prompt}"
    (moved / "run.json").write_text(json.dumps(run))
    sent(moved, hub)
    there = hub.repositories[NAME].files
    told = json.loads(there["run.json"])
    assert (told["config"]["model"]["name"], told["config"]["model"]["path"]) == ("mine", "weights")
    assert told["config"]["prompts"]["rewrite"] == "/imagine {prompt}", "no path"
    readme = there["README.md"].decode()
    assert "| model | mine |" in readme
    assert "| weights of transformer | sha256:abc |" in readme
    for path, content in there.items():
        assert not any(place in content for place in (b"/home/me", b"~/", bytes(output.parent))), path


def test_a_data_set_of_something_else_is_refused(output: Path, hub: WritableHub) -> None:
    sent(output, hub)
    there = hub.repositories[NAME]
    run = json.loads(there.files["run.json"])
    there.files["run.json"] = json.dumps({**run, "config_digest": "other"}).encode()
    with pytest.raises(OutputError, match="me/rings: holds another run"):
        sent(output, hub)
    there.files = {".gitattributes": b"", "train.csv": b""}
    with pytest.raises(OutputError, match=r"it holds train\.csv"):
        sent(output, hub)
    there.files, there.is_private = {".gitattributes": b"", "README.md": b""}, False
    with pytest.raises(OutputError, match="found a public one; add --public"):
        sent(output, hub)
    assert sent(output, hub, is_public=True).commits == 5
    with pytest.raises(ConfigurationError, match="hf auth login"):
        sent(output, hub, token="hf_wrong")


def test_the_card_is_what_datasets_reads(output: Path, tmp_path: Path) -> None:
    text = card(output)
    told = head(text)
    assert (told["license"], told["ttsvar_ray"]["model_license"]) == ("cc-by-4.0", "unknown")
    assert told["ttsvar_ray"]["model"] == "tests.support.tiny_engine:TinyEngineBuilder"
    assert (told["ttsvar_ray"]["seed"], told["ttsvar_ray"]["reward"]) == (5, "tiny-reward")
    assert told["ttsvar_ray"]["plan"] == (
        "8 trajectories, cluster after scale 2 keeps 6, cluster after scale 5 keeps 4, "
        "resample after scale 6 keeps 2, resample after scale 9 keeps 1"
    )
    images, trace = told["dataset_info"]
    assert images["splits"][0]["num_examples"] == PROMPTS
    assert images["download_size"] == sum(path.stat().st_size for path in (output / "data").iterdir())
    expected = datasets.Features.from_arrow_schema(trace_schema())
    assert trace["features"] == expected._to_yaml_list()
    lines = replace(known(output), bad_lines=2)
    assert "0 prompts were given up, 2 lines of the prompt file hold none" in card(output, manifest=lines)
    for words in ("## Results", "## Known limits", "arxiv.org/abs/2507.18537", "| seed | 5 |", "cc-by-4.0"):
        assert words in text
    size = sum(path.stat().st_size for path in (output / "data").iterdir())
    assert f"| size | {size / 1000:.3g} kB of images |" in text
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("data", "trace"):
        (folder / name).symlink_to(output / name)
    (folder / "README.md").write_text(text)
    for config, rows in (("images", PROMPTS), ("trace", 4 * PROMPTS)):
        opened = datasets.load_dataset(str(folder), config, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(opened) == rows
    (folder / "README.md").write_text(text.replace(f"num_examples: {PROMPTS}\n", "num_examples: 23\n"))
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        datasets.load_dataset(str(folder), "images", cache_dir=str(tmp_path / "other"))


def test_the_command_pushes_what_is_whole_and_shows_no_token(
    output: Path, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", partial(HfApi, endpoint=hub.endpoint))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    runner = CliRunner()
    done = runner.invoke(app, ["push", str(output), NAME, "--licence", "cc-by-4.0"])
    assert done.exit_code == 0, done.output
    assert f"{hub.endpoint}/datasets/{NAME}: " in done.stdout
    there = hub.repositories[NAME]
    assert head(there.files["README.md"].decode())["license"] == "cc-by-4.0"
    assert there.files["contact_sheet.png"].startswith(b"\x89PNG")
    assert "unknown" not in done.stderr
    anew = runner.invoke(app, ["push", str(output), NAME])
    assert head(there.files["README.md"].decode())["license"] == "unknown"
    assert "licence of the images: unknown; --licence names it, each time" in anew.stderr
    public = runner.invoke(app, ["push", str(output), NAME, "--licence", "cc-by-4.0", "--public"])
    assert (public.exit_code, there.is_private) == (0, True), public.output
    assert f"{NAME} was made private and stays so" in public.stderr
    damaged = tmp_path / "out"
    shutil.copytree(output, damaged)
    (damaged / "README.md").write_text("# Mine\n")
    mine = runner.invoke(app, ["push", str(damaged), NAME])
    assert mine.exit_code == 0, mine.output
    assert there.files["README.md"] == b"# Mine\n"
    (damaged / "README.md").write_text("---\nlicense: [mit\n---\n# Mine\n")
    broken = runner.invoke(app, ["push", str(damaged), "me/others"])
    assert broken.exit_code == 2, broken.output
    assert "README.md where it is your own" in broken.stderr
    uploads = len(hub.uploads)
    unknown = runner.invoke(app, ["push", str(output), "me/others", "--licence", "cc-by-5"])
    assert unknown.exit_code == 2, unknown.output
    assert "not cc-by-5" in unknown.stderr
    assert "correct --licence" in unknown.stderr
    assert "me/others" not in hub.repositories
    assert len(hub.uploads) == uploads
    part = damaged / "data" / "part-00002.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-40] + b"x" * 36 + content[-4:])
    requests = len(hub.requests)
    refused = runner.invoke(app, ["push", str(damaged), NAME])
    assert refused.exit_code == 1
    assert "not pushed: the output is not whole" in refused.stderr
    assert len(hub.requests) == requests, "the hub is not asked"
    hub.breaks_after = 0
    denied = runner.invoke(app, ["push", str(output), NAME])
    assert denied.exit_code == 2
    assert "hf auth login" in denied.stderr
    assert runner.invoke(app, ["push", str(output), "rings"]).exit_code == 2
    assert TOKEN not in done.output + mine.output + refused.output + denied.output
