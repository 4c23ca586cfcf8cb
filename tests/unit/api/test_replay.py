"""An image rebuilt from its bits is the image of the run, at every scale."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.manifests import manifest
from ttsvar_ray import Search
from ttsvar_ray.api.replay import Replayer, is_same_file
from ttsvar_ray.api.saved import load
from ttsvar_ray.cli.app import app
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.errors import OutputError
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.results import PromptResult
from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.types import Prompt

TEXT = "a photo of a ring and a circle"


@pytest.fixture(scope="module")
def job() -> ResolvedJob:
    settings = ["strategy.name=best-of-n", "strategy.n=2", "output.keep=all", "engine.threads=1"]
    return resolve(load_config(None, [*settings, "model.device=cpu"], needs_files=False))


@pytest.fixture(scope="module")
def outcome(job: ResolvedJob) -> PromptResult:
    (found,) = run_local(
        [Prompt(row=0, prompt_id="the id", ordinal=0, text=TEXT)],
        plan=job.plan,
        engines=[build_engine(job)],
        run_seed=0,
        settings=CoordinatorSettings(spread=1, keep="all"),
    )
    assert isinstance(found, PromptResult)
    return found


@pytest.fixture(scope="module")
def output(job: ResolvedJob, outcome: PromptResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replay") / "out"
    layout = OutputLayout(root)
    open_output(layout, manifest(config=job.config, rows_per_chunk=1))
    context = RowContext(model="shapes", strategy="best-of-n", seed=0, reward_name="shapes", bits=True)
    write_chunk(layout, 0, rows=range(1), finished=[outcome], failed=[], context=context)
    return root


def test_every_scale_has_its_picture_and_the_last_is_the_image(
    job: ResolvedJob, outcome: PromptResult
) -> None:
    best, other = outcome.images
    pictures = Replayer.of(job).scales(TEXT, best.bits)
    assert [picture.shape for picture in pictures] == [(48, 48, 3)] * 13
    assert is_same_file(job, pictures[-1], best.image.payload)
    assert not is_same_file(job, pictures[-2], best.image.payload)
    assert not is_same_file(job, pictures[-1], other.image.payload)
    early, late = (np.abs(p.astype(int) - pictures[-1]).mean() for p in (pictures[0], pictures[9]))
    assert early > late > 0


def test_fewer_scales_are_a_trajectory_on_its_way(job: ResolvedJob, outcome: PromptResult) -> None:
    bits = outcome.images[0].bits
    replayer = Replayer.of(job)
    np.testing.assert_array_equal(replayer.scales(TEXT, bits[:5])[-1], replayer.scales(TEXT, bits)[4])


@pytest.mark.parametrize("bits", [(b"",), (b"\0" * 99,) * 13])
def test_bits_of_another_model_are_refused(job: ResolvedJob, bits: tuple[bytes, ...]) -> None:
    with pytest.raises(OutputError, match="expected those of shapes, got others"):
        Replayer.of(job).scales(TEXT, bits)


def test_the_command_writes_a_strip_and_says_whether_it_is_the_image(output: Path, tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    done = CliRunner().invoke(app, ["replay", str(output), "the id", "--to", str(strip)])
    assert done.exit_code == 0, done.output
    assert done.output == f"{strip}: 13 scales; the last is the image of the run\n"
    assert strip.stat().st_size > 10_000
    other = ["--set", "output.image_format=webp"]
    done = CliRunner().invoke(app, ["replay", str(output), "the id", "--to", str(strip), *other])
    assert done.exit_code == 1
    assert "the last is NOT the image of the run" in done.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nobody"], "expected a finished prompt with the id or text 'nobody'"),
        (["the id", "--rank", "2"], "--rank: expected 0 to 1"),
        (["the id", "--set", "model.nam=x"], "did you mean 'name'"),
        (["the id", "--slot", "1"], "--slot: 1 of which population? Say it by --scale"),
        (
            ["the id", "--scale", "4"],
            "--scale: expected one of the selections of round 0 (scales none), got 4",
        ),
    ],
)
def test_what_is_not_there_is_said(output: Path, arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(app, ["replay", str(output), *arguments])
    assert done.exit_code == 2
    assert complaint in done.output


def test_a_run_without_bits_says_which_setting_keeps_them(outcome: PromptResult, output: Path) -> None:
    layout = OutputLayout(output.with_name("without"))
    manifest_text = (output / "run.json").read_text()
    layout.root.local_path.mkdir(parents=True)  # type: ignore[union-attr]
    (output.with_name("without") / "run.json").write_text(manifest_text)
    context = RowContext(model="shapes", strategy="best-of-n", seed=0, reward_name="shapes")
    one = dataclasses.replace(outcome, images=outcome.images[:1])
    write_chunk(layout, 0, rows=range(1), finished=[one], failed=[], context=context)
    done = CliRunner().invoke(app, ["replay", str(layout.root), "the id"])
    assert done.exit_code == 2
    assert "output.bits: true" in done.output


class Watching(PlainReward):
    """Looks at everything that it is shown, and likes bright images."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def score(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        self.seen.append(images)
        return images.mean(axis=(1, 2, 3)).astype(np.float32)


def test_what_was_dropped_is_drawn_as_the_reward_saw_it(job: ResolvedJob) -> None:
    reward = Watching()
    settings = {"strategy.plan": "published", "strategy.cluster_scales": [], "engine.threads": 1}
    search = Search("shapes", reward=reward, device="cpu", settings=settings)
    (result,) = search.run([TEXT])
    replayer = Replayer.of(job)
    looked_at = [images for images in reward.seen if len(images) == len(result.trace[0].bits)]
    assert [record.scale_index for record in result.trace] == [6, 9]
    dropped = set(range(len(result.trace[0].bits))) - set(result.trace[0].ancestor_index)
    assert dropped
    np.testing.assert_array_equal(replayer.latest(TEXT, result.trace[0].bits), looked_at[-1])
    np.testing.assert_array_equal(replayer.latest(TEXT, result.trace[1].bits), reward.seen[-2])
    slot = min(dropped)
    strip = replayer.scales(TEXT, result.trace[0].bits[slot])
    assert len(strip) == 7
    np.testing.assert_array_equal(strip[-1], looked_at[-1][slot])
    assert result.tree is not None
    drawn = result.tree.svg()
    population = sum(level.population for level in result.tree.levels)
    assert drawn.count("<image ") == population and "<circle" not in drawn


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary run, whose trace has bits and whose rows have none."""
    root = tmp_path_factory.mktemp("searched")
    (root / "prompts.txt").write_text(f"{TEXT}\n")
    settings = ("output.trace=bits", "model.device=cpu", "strategy.plan=published")
    job = [part for setting in settings for part in ("--set", setting)] + ["--in-process"]
    command = ["generate", "--prompts", str(root / "prompts.txt"), "--output", str(root / "out"), *job]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return root / "out"


def test_an_ordinary_run_shows_what_it_dropped(searched: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"

    def told(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["replay", str(searched), TEXT, "--to", str(sheet), *arguments])
        assert done.exit_code == 0, done.output
        assert sheet.stat().st_size > 5_000
        return done.output.removeprefix(f"{sheet}: ")

    assert told("--scale", "6").startswith("scale 6, 4 trajectories, of which ")
    (record,) = [one for one in load(searched)[0].trace if one.scale_index == 5]
    dropped = min(set(range(len(record.bits))) - set(record.ancestor_index))
    assert told("--scale", "5", "--slot", str(dropped)) == (
        f"6 scales of trajectory {dropped}, which was dropped at scale 5\n"
    )
    assert told().startswith("its ancestors up to scale 9, and the image itself")
    # Refused before the model is loaded, which this one could not be.
    wrong = ["--scale", "6", "--slot", "4", "--set", "model.path=/absent"]
    done = CliRunner().invoke(app, ["replay", str(searched), TEXT, *wrong])
    assert done.exit_code == 2
    assert "--slot: expected 0 to 3 of the population at scale 6, got 4" in done.output


def test_the_report_draws_the_trees_of_the_trace(searched: Path, tmp_path: Path) -> None:
    for pictures, images in (("1", 8 + 6 + 4 + 2 + 1), ("0", 0)):
        page = tmp_path / "new" / "page.html"
        arguments = ["report", str(searched), "--to", str(page), "--pictures", pictures]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert page.read_text(encoding="utf-8").count("\\u003cimage ") == images


def without_trace(root: Path) -> None:
    (root / "trace" / "part-00000.parquet").unlink()


def of_another_run(root: Path) -> None:
    part = root / "data" / "part-00000.parquet"
    table = pq.read_table(part)
    lineage = pa.array([[0]] * table.num_rows, table.schema.field("lineage").type)
    pq.write_table(table.set_column(table.schema.get_field_index("lineage"), "lineage", lineage), part)


def of_another_program(root: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), root / "data" / "part-00000.parquet")


def without_pictures(root: Path) -> None:
    part = root / "data" / "part-00000.parquet"
    table = pq.read_table(part)
    place = table.schema.get_field_index("image")
    images = [{**image, "bytes": b"no picture"} for image in table["image"].to_pylist()]
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(images, field.type)), part)


def with_texts_for_rewards(root: Path) -> None:
    part = root / "data" / "part-00000.parquet"
    table = pq.read_table(part)
    place = table.schema.get_field_index("reward")
    pq.write_table(table.set_column(place, "reward", pa.array(["high"] * table.num_rows)), part)


@pytest.mark.parametrize(
    ("damage", "refused"),
    [
        (without_trace, {}),
        (
            of_another_run,
            {"report": "one of both is another run's", "replay": "one of both is another run's"},
        ),
        (of_another_program, dict.fromkeys(("report", "replay", "sheet", "export"), "part-00000.parquet: ")),
        (
            without_pictures,
            {"report": "does not decode", "replay": "does not decode", "sheet": "does not decode"},
        ),
        (with_texts_for_rewards, {"report": "part-00000.parquet: "}),
    ],
)
def test_an_output_that_was_changed_by_hand_is_told(
    searched: Path, tmp_path: Path, damage: Callable[[Path], None], refused: dict[str, str]
) -> None:
    root = tmp_path / "out"
    shutil.copytree(searched, root)
    damage(root)
    commands = {
        "report": ["--to", str(tmp_path / "page.html"), "--pictures", "0"],
        "replay": [TEXT, "--to", str(tmp_path / "strip.png")],
        "sheet": ["--to", str(tmp_path / "sheet.png")],
        "export": ["--to", str(tmp_path / "folder"), "--layout", "folder"],
    }
    for command, arguments in commands.items():
        done = CliRunner().invoke(app, [command, str(root), *arguments])
        assert "unexpected" not in done.output, done.output
        if command in refused:
            assert done.exit_code == 2 and refused[command] in done.output, (command, done.output)


def test_pictures_need_no_transformer(
    job: ResolvedJob, outcome: PromptResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Replayer.of(job).model
    bits = outcome.images[0].bits

    class Protocolled:
        """The same model without its way from bits to pictures."""

        scale_schedule, bits_per_token = model.scale_schedule, model.bits_per_token
        start, encode_text, replay, decode = model.start, model.encode_text, model.replay, model.decode

    through_the_transformer = Replayer(Protocolled()).scales(TEXT, bits)  # type: ignore[arg-type]

    def never(*args: object, **more: object) -> None:
        raise AssertionError("the transformer is not asked")

    monkeypatch.setattr(model, "next_logits", never)
    monkeypatch.setattr(model, "encode_text", never)
    assert all(map(np.array_equal, Replayer(model).scales(TEXT, bits), through_the_transformer))
    both = [tuple(image.bits[:4]) for image in outcome.images[:2]]
    drawn = Replayer(model).latest(TEXT, both)
    assert np.array_equal(drawn[0], through_the_transformer[3])
    assert not np.array_equal(drawn[0], drawn[1])
