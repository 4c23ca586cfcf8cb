"""An output folder is continued by the same run and refused to any other."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from outcome_samples import CONTEXT, result

from tests.support.manifests import manifest
from ttsvar_ray.cluster.job import warn_of_other_kernels
from ttsvar_ray.config.load import load_config
from ttsvar_ray.dataset import output
from ttsvar_ray.dataset.contents import committed_chunks
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, read_manifest
from ttsvar_ray.dataset.output import check_output, fresh_output, open_output
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import OutputError
from ttsvar_ray.models.row_stability import cpu_kernels


def manifest_of(
    *overrides: str, digest: str = "a" * 64, count: int = 10, chunks: tuple[str, ...] = ("d", "e", "f")
) -> RunManifest:
    return manifest(
        *overrides,
        prompts_digest=digest,
        prompt_count=count,
        bad_lines=1,
        rows_per_chunk=4,
        chunk_digests=chunks,
        column_types={"tag": "json"},
    )


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path / "new" / "out")
    written = open_output(layout, manifest_of("strategy.n=2"))
    assert read_manifest(layout) == written
    assert written.versions["python"]
    assert "numpy" in written.versions


def test_the_same_run_goes_on_with_its_first_manifest(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    first = dataclasses.replace(manifest_of(), created="2026-01-01T00:00:00+00:00")
    open_output(layout, first)
    (tmp_path / "data/.part-00000.parquet.1234.tmp").write_bytes(b"half")
    assert open_output(layout, manifest_of("cluster.workers=3", "engine.micro_batch_rows=4")) == first
    assert layout.data_folder.names() == []


def test_a_run_that_goes_on_with_other_kernels_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = OutputLayout(tmp_path)
    here = dataclasses.replace(manifest_of(), cpu_kernels=cpu_kernels())
    assert here.cpu_kernels.startswith(torch.backends.cpu.get_cpu_capability())
    begun = open_output(layout, here)
    warn_of_other_kernels(open_output(layout, here), here)
    warn_of_other_kernels(dataclasses.replace(begun, cpu_kernels=""), here)
    assert not caplog.records
    warn_of_other_kernels(begun, dataclasses.replace(here, cpu_kernels="another"))
    assert "begun with the CPU kernels" in caplog.text
    caplog.clear()
    warn_of_other_kernels(begun, dataclasses.replace(here, config=manifest_of("engine.threads=2").config))
    assert f"{here.cpu_kernels}, engine.threads 1 and goes on" in caplog.text
    assert f"{here.cpu_kernels}, engine.threads 2: prompts that run on a CPU" in caplog.text


def commit(layout: OutputLayout, chunk: int = 0) -> None:
    write_chunk(
        layout, chunk, rows=range(chunk, chunk + 1), finished=[result(chunk)], failed=[], context=CONTEXT
    )


def test_a_folder_without_a_part_is_owned_by_nobody(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest_of("strategy.n=2"))
    (tmp_path / "trace/part-00007.parquet").write_bytes(b"of the other run")
    (tmp_path / "failed/bad_lines.jsonl").write_text("{}")
    wanted = manifest_of("strategy.n=8")
    assert check_output(layout, wanted) is None
    assert open_output(layout, wanted) == wanted
    assert read_manifest(layout) == wanted
    assert not list((tmp_path / "trace").iterdir()) and not list((tmp_path / "failed").iterdir())
    commit(layout)
    with pytest.raises(OutputError, match=r"strategy\.n: 8 in the folder, 2 now"):
        open_output(layout, manifest_of("strategy.n=2"))


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest_of("strategy.n=2"))
    commit(layout)
    before = layout.run_file.read_bytes()
    with pytest.raises(OutputError) as caught:
        open_output(layout, manifest_of("strategy.n=8", "seed=5"))
    message = str(caught.value)
    assert "strategy.n: 2 in the folder, 8 now" in message
    assert "seed: 0 in the folder, 5 now" in message
    assert "strategy.name" not in message
    assert "Choose another --output folder, add --force-new" in message
    assert layout.run_file.read_bytes() == before


def test_of_two_runs_that_found_the_same_empty_folder_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, first = OutputLayout(tmp_path), json.dumps(manifest_of("seed=1").to_json())

    def look_too_early(layout: OutputLayout, wanted: RunManifest) -> RunManifest | None:
        found = check_output(layout, wanted)
        layout.run_file.write_text(first)
        return found

    monkeypatch.setattr(output, "check_output", look_too_early)
    with pytest.raises(OutputError, match="seed: 1 in the folder, 2 now"):
        open_output(layout, manifest_of("seed=2"))
    assert layout.run_file.read_text() == first


def test_an_output_whose_making_was_cut_short_is_continued(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    layout.run_file.write_text(json.dumps(manifest_of().to_json()))
    open_output(layout, manifest_of())
    assert sorted(layout.root.names()) == ["README.md", "data", "failed", "manifest", "run.json", "trace"]


def test_another_prompt_set_is_refused(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest_of())
    commit(layout)
    with pytest.raises(OutputError, match=r"prompts: 10 of p.txt \(digest aaaa.* in the folder, 11 of p.txt"):
        check_output(layout, manifest_of(digest="b" * 64, count=11))


@pytest.mark.parametrize(
    ("count", "chunks", "told"),
    [
        (10, ("a", "x", "c"), "the first 4 are the same, a change is in prompts 5 to 8$"),
        (9, ("a", "b", "x"), "the first 8 are the same, a change is in prompts 9 to 10$"),
        (11, ("a", "b", "x"), "the first 8 are .* in prompts 9 to 10, or others .*--extend"),
        (14, ("a", "b", "c", "e"), "the first 10 are the same, others were added at the end; .*--extend"),
    ],
)
def test_where_another_prompt_set_differs_is_told(
    tmp_path: Path, count: int, chunks: tuple[str, ...], told: str
) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest_of(chunks=("a", "b", "c")))
    commit(layout)
    with pytest.raises(OutputError) as caught:
        check_output(layout, manifest_of(digest="b" * 64, count=count, chunks=chunks))
    assert re.search(told, str(caught.value).splitlines()[1])


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"it holds thesis\.tex"):
        check_output(OutputLayout(tmp_path), manifest_of())
    with pytest.raises(OutputError, match="got a file"):
        check_output(OutputLayout(tmp_path / "thesis.tex"), manifest_of())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "damaged.*put it back"),
        ("{", "damaged.*put it back"),
        ("[]", "not a manifest.*choose another"),
        ("{}", "not a manifest.*choose another"),
        ('{"format_version": 99}', "not a manifest.*choose another"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputError, match=rf"run\.json: {told}"):
        check_output(OutputLayout(tmp_path), manifest_of())


def test_parts_on_disk_are_the_truth_about_what_is_done(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest_of())
    assert committed_chunks(layout) == frozenset()
    for chunk in (3, 0):
        commit(layout, chunk)
    (tmp_path / "data/.part-00007.parquet.x.tmp").write_bytes(b"half")
    assert committed_chunks(layout) == {0, 3}
    (tmp_path / "data/part-00003.parquet").write_bytes(layout.data_part(3).read_bytes()[:-10])
    with pytest.raises(OutputError, match=r"part-00003\.parquet: not a whole Parquet file"):
        committed_chunks(layout)


def test_credentials_never_reach_the_manifest(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    secretive = manifest_of(
        "output.path=s3://KEY:topsecret@bucket/out", "prompts.path=s3://K:topsecret@b/p.txt"
    )
    secretive = dataclasses.replace(secretive, prompts_path="s3://K:topsecret@b/p.txt")
    written = open_output(layout, secretive)
    assert "topsecret" not in layout.run_file.read_text()
    assert written.config["output"]["path"] == "s3://bucket/out"
    assert written.prompts_path == "s3://b/p.txt"


def test_run_json_says_what_was_run(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest_of("strategy.n=2", "seed=5"))
    content = json.loads(layout.run_file.read_text())
    config = load_config(None, ["strategy.n=2", "seed=5"], needs_files=False)
    assert content["config"] == config.resolved()
    assert content["config_digest"] == config.digest()
    assert content["seed"] == 5
    assert content["prompts"]["digest"] == "a" * 64
    assert {"python", "numpy", "torch", "ttsvar-ray"} <= set(content["versions"])


def test_force_new_goes_on_in_the_first_folder_that_is_free_or_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = OutputLayout(tmp_path / "out")
    assert fresh_output(layout, manifest_of()) == layout
    open_output(layout, manifest_of("seed=1"))
    open_output(OutputLayout(tmp_path / "out-2"), manifest_of("seed=2"))
    commit(layout)
    commit(OutputLayout(tmp_path / "out-2"))
    (tmp_path / "out-3").mkdir()
    (tmp_path / "out-3/thesis.tex").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    chosen = fresh_output(layout, manifest_of("seed=3"))
    assert str(chosen.root) == str(tmp_path / "out-4")
    assert f"{tmp_path}/out holds something else; this run writes to {tmp_path}/out-4" in caplog.text
    open_output(chosen, manifest_of("seed=3"))
    assert fresh_output(layout, manifest_of("seed=3")).root == chosen.root
    assert fresh_output(layout, manifest_of("seed=1")) == layout
    assert set(before) <= set(tmp_path.rglob("*"))
