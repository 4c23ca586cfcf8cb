"""Job files: everything wrong is said at once, in words; the option list is pinned."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.settings import option_names
from ttsvar_ray.config.explain import validated
from ttsvar_ray.config.job import NOT_CONTENT, JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.sweep import Sweep
from ttsvar_ray.search.calibration_file import Calibration
from ttsvar_ray.types import PotentialKind

JOBS = sorted((Path(__file__).parents[3] / "jobs").glob("*.yaml"))


def problems(*overrides: str, path: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, overrides, needs_files=False)
    return caught.value.problems


def job(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_jobs_are_there() -> None:
    assert {path.name for path in JOBS} >= {
        "shapes_demo.yaml",
        "shapes_published_plan.yaml",
        "infinity_2b.yaml",
    }


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_shipped_job_parses(path: Path) -> None:
    config = load_config(path, [])
    assert config.prompts.path
    assert config.output.path
    prompts = Path(__file__).parents[3] / config.prompts.path
    assert prompts.exists() or config.model.name != "shapes"


def test_the_option_list_is_pinned() -> None:
    """A new option is a promise to users: add it here, in the docs, and where it is read."""
    assert option_names() == [
        "model.name",
        "model.path",
        "model.text_encoder",
        "model.resolution",
        "model.aspect_ratio",
        "model.positive_prompt",
        "model.device",
        "model.dtype",
        "prompts.path",
        "prompts.format",
        "prompts.column",
        "prompts.id_column",
        "prompts.columns",
        "prompts.split",
        "prompts.subset",
        "prompts.rewrite",
        "prompts.limit",
        "strategy.name",
        "strategy.plan",
        "strategy.n",
        "strategy.batch_schedule",
        "strategy.cluster_scales",
        "strategy.resample_scales",
        "strategy.selections",
        "strategy.potential",
        "strategy.lambda",
        "strategy.scheme",
        "strategy.cluster_restarts",
        "strategy.max_rounds",
        "strategy.growth",
        "strategy.reject_below",
        "strategy.stop_at",
        "strategy.calibration",
        "strategy.budget",
        "strategy.map_scales",
        "strategy.look_ahead",
        "strategy.final_mean_of",
        "strategy.final_reward",
        "strategy.final_ties",
        "sampling.guidance",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.top_k",
        "sampling.confidence",
        "reward.name",
        "reward.path",
        "reward.members",
        "reward.combine",
        "reward.options",
        "reward.dtype",
        "reward.preprocessing",
        "reward.on_map",
        "reward.nonfinite",
        "features.extractor",
        "features.pca_sign",
        "features.options",
        "features.backbone",
        "features.dtype",
        "features.preprocessing",
        "engine.micro_batch_rows",
        "engine.deterministic",
        "engine.kernels",
        "engine.cuda_graphs",
        "engine.selector_decode",
        "engine.threads",
        "engine.memory_gb",
        "cluster.workers",
        "cluster.spread",
        "cluster.shard",
        "cluster.address",
        "cluster.in_process",
        "cluster.gpus_per_worker",
        "cluster.cpus_per_worker",
        "cluster.batch_tokens",
        "cluster.workers_per_cell",
        "cluster.max_attempts",
        "cluster.segment_timeout_s",
        "cluster.start_timeout_s",
        "cluster.max_failure_rate",
        "cluster.failure_window",
        "verifiers.replicas",
        "verifiers.gpus_per_replica",
        "verifiers.cpus_per_replica",
        "verifiers.timeout_s",
        "output.path",
        "output.rows_per_part",
        "output.image_format",
        "output.quality",
        "output.png_level",
        "output.keep",
        "output.bits",
        "output.trace",
        "simulation.gpus",
        "simulation.prompts",
        "simulation.profile",
        "simulation.seed",
        "simulation.noise",
        "simulation.stragglers",
        "simulation.straggler_factor",
        "simulation.failures_per_gpu_hour",
        "simulation.failures_per_node_hour",
        "simulation.gpus_per_node",
        "simulation.restart_seconds",
        "simulation.start_seconds",
        "simulation.start_spread_seconds",
        "simulation.writer_gb_per_second",
        "simulation.selections",
        "simulation.abandoned",
        "simulation.satisfied",
        "simulation.compare",
        "seed",
        "max_failed",
    ]


def test_a_job_file_and_overrides_in_order(tmp_path: Path) -> None:
    path = job(
        tmp_path,
        "prompts: {path: p.txt}\noutput:\n  path: out\nstrategy:\n  n: 2\n  lambda: 3\nsampling:\n",
    )
    config = load_config(path, ["strategy.n=4", "strategy.n=8", "strategy.cluster_scales=[2, 5]", "seed=7"])
    assert (config.strategy.n, config.strategy.lambda_, config.strategy.cluster_scales) == (8, 3.0, (2, 5))
    assert config.seed == 7
    assert load_config(path, ["strategy.potential=max"]).strategy.potential is PotentialKind.MAX
    assert load_config(path, ["strategy.lambda=null"]).strategy.lambda_ is None


def test_all_problems_come_at_once() -> None:
    found = problems(
        "strategy.name=ttsvar",
        "strategy.lamda=3",
        "strategy.n=0",
        "strategy.batch_schedule=[8, x]",
        "cluster.spread=automatic",
        "sampling.guidance=[1, -2]",
        "sampling.top_p=1.5",
        "seed=true",
        "n=3",
        "output.bits=7",
        "model=3",
        "nonsense",
        "a.b=[",
    )
    assert found == (
        "--set nonsense: expected section.key=value, for example strategy.n=2",
        (
            "--set a.b=[: the value is not valid YAML at line 1, column 2: "
            "expected the node content, but found '<stream end>'; if it is a text, quote it for YAML, too: "
            "--set 'a.b=\"[\"'"
        ),
        "model: expected a section with keys of its own, got 3",
        (
            "strategy.name: expected 'raw', 'best-of-n', 'resampling', 'tts-var' or 'adaptive', got "
            "'ttsvar'; did you mean 'tts-var'?"
        ),
        "strategy.n: expected at least 1, got 0",
        "strategy.batch_schedule[1]: expected a whole number, got 'x'",
        (
            "strategy.lamda: unknown key; did you mean 'lambda'? known keys: name, plan, n, batch_schedule, "
            "cluster_scales, resample_scales, selections, potential, lambda, scheme, cluster_restarts, "
            "max_rounds, growth, reject_below, stop_at, calibration, budget, map_scales, "
            "look_ahead, final_mean_of, final_reward, final_ties"
        ),
        "sampling.guidance[1]: expected at least 0, got -2",
        "sampling.top_p: expected at most 1, got 1.5",
        "cluster.spread: expected a whole number or 'auto', got 'automatic'; did you mean 'auto'?",
        "output.bits: expected true or false, got 7",
        "seed: expected a number, got true",
        (
            "n: unknown key; did you mean strategy.n? known keys: model, prompts, strategy, sampling, "
            "reward, features, engine, cluster, verifiers, output, simulation, seed, max_failed"
        ),
    )


def test_a_quality_that_nothing_reads_is_refused() -> None:
    (problem,) = problems("output.quality=90")
    assert problem.startswith("output.quality: expected none with image_format png")
    assert load_config(None, ["output.quality=90", "output.image_format=webp"], needs_files=False)
    with pytest.raises(ConfigurationError, match=r"output\.png_level: expected none"):
        load_config(None, ["output.png_level=1", "output.image_format=webp"], needs_files=False)


def test_files_are_needed_to_generate() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(None, [])
    assert [line.split(":")[0] for line in caught.value.problems] == ["prompts.path", "output.path"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strategy: {n: 2", "not valid YAML at line"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' is written twice"),
        ("strategy:\n  n: 1\n  n: 2\n", "key 'n' is written twice"),
        ("- a\n- b\n", "got one list"),
        ("just text", "got one text"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("1: 2", "1: unknown key"),
    ],
)
def test_a_job_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems(path=job(tmp_path, text))
    assert message in problem


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "seed: *a8\n", "expected at most 10000 values, got more"),
        ("seed: &a [*a]\n", "expected at most 10000 values, got more"),
        ("strategy: &a\n  inner: *a\n", "expected at most 10000 values, got more"),
        ("seed: " + "[" * 2000 + "]" * 2000, "moderate depth"),
        ("{" * 2000, "moderate depth"),
        ("? [a]\n: 1\n", "expected a name before the colon, got a list"),
        ("? {a: 1}\n: 1\n", "expected a name before the colon, got a dict"),
        ("seed: " + "1" * 5000, "a number or a date cannot be read"),
        ("seed: 2020-99-99\n", "a number or a date cannot be read"),
        ("seed: 2020-01-01T99:00:00\n", "a number or a date cannot be read"),
        ("seed: !!binary x\n", "at line 1, column 7"),
        ("seed: !!python/object:os.system x\n", "could not determine a constructor"),
    ],
)
def test_a_job_file_that_would_break_its_reader_is_told_in_a_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    (problem,) = problems(path=job(tmp_path, text))
    assert message in problem
    assert len(problem) < 400


def test_an_override_is_bounded_as_a_job_file_is() -> None:
    (problem,) = problems("seed=" + "[" * 2000 + "]" * 2000)
    assert "moderate depth" in problem


def test_a_job_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert problems(path=tmp_path / "absent.yaml") == (f"{tmp_path / 'absent.yaml'}: no such job file",)
    assert "got a folder" in problems(path=tmp_path)[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "in UTF-8" in problems(path=tmp_path / "b.yaml")[0]


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        JobConfig().strategy.n = 3  # type: ignore[misc]


def test_the_digest_names_what_is_generated() -> None:
    def digest(*overrides: str) -> str:
        return load_config(None, overrides, needs_files=False).digest()

    base = digest()
    same = [
        "cluster.workers=7",
        "cluster.spread=2",
        "cluster.address=ray://head:10001",
        "engine.micro_batch_rows=3",
        "engine.threads=2",
        "model.device=cpu",
        "model.path=/weights",
        "model.text_encoder=/weights/flan-t5-xl",
        "reward.path=/weights/reward",
        "features.backbone=/weights/dinov2",
        "output.path=elsewhere",
        "prompts.path=p.txt",
    ]
    other = [
        "seed=1",
        "strategy.n=2",
        "strategy.lambda=1",
        "model.dtype=bfloat16",
        "model.resolution=0.25M",
        "model.aspect_ratio=16:9",
        "model.positive_prompt=true",
        "sampling.top_p=0.5",
        "output.rows_per_part=3",
        "output.bits=true",
        "engine.selector_decode=selector",
    ]
    assert {digest(override) for override in same} == {base}
    assert len({base, *(digest(override) for override in other)}) == len(other) + 1
    ensembles = [
        digest("reward.name=ensemble", f"reward.members={{image-reward: {where}, {second}: {where}}}")
        for where, second in (("/a", "hps-v2.1"), ("/b", "hps-v2.1"), ("/a", "pick-score"))
    ]
    assert ensembles[0] == ensembles[1] != ensembles[2]


def test_an_aspect_ratio_is_text_not_a_number_in_base_sixty(tmp_path: Path) -> None:
    assert load_config(None, ["model.aspect_ratio=16:9"], needs_files=False).model.aspect_ratio == "16:9"
    path = job(tmp_path, "model: {aspect_ratio: 1:1}\nseed: 1_000\nsampling: {top_p: .5}\n")
    config = load_config(path, [], needs_files=False)
    assert (config.model.aspect_ratio, config.seed, config.sampling.top_p) == ("1:1", 1000, 0.5)


WRONG = (None, True, "", "x", -1, 0, 2**70, 1e-9, float("nan"), [], [[]], [{}], {}, {"x": {}}, {7: [7]})


@pytest.mark.parametrize("model", [JobConfig, Sweep, Calibration])
def test_whatever_a_file_says_the_words_are_ours(model: type) -> None:
    names = option_names() if model is JobConfig else list(model.__annotations__)
    told: list[str] = []
    for name, value in itertools.product([*names, "unknown"], WRONG):
        section, _, key = name.partition(".")
        validated(model, {section: {key: value} if key else value}, told)
    assert len(told) > 40
    foreign = re.compile(r"\b(Input|should|permitted|pydantic|[Uu]nable|valid|required)\b|\{\w+\}")
    assert not [line for line in told if foreign.search(line.partition(", got ")[0])]


def test_every_exception_from_the_digest_exists() -> None:
    names = option_names()
    assert all(any(name == off or name.startswith(f"{off}.") for name in names) for off in NOT_CONTENT)


def test_resolved_settings_make_the_same_job_again(tmp_path: Path) -> None:
    import yaml

    config = load_config(
        None, ["strategy.lambda=2", "sampling.guidance=[1, 2]", "strategy.potential=sum"], needs_files=False
    )
    path = job(tmp_path, yaml.safe_dump(config.resolved()))
    assert load_config(path, [], needs_files=False) == config


def test_a_shard_is_written_as_index_and_count() -> None:
    config = load_config(None, ["cluster.shard=2/8"], needs_files=False)
    assert str(config.cluster.shard) == config.resolved()["cluster"]["shard"] == "2/8"
    assert load_config(None, ["cluster.shard=0/1"], needs_files=False).digest() == config.digest()
    for wrong in ("8/8", "1", "1/0", "a/b", "-1/2"):
        with pytest.raises(ConfigurationError, match=r"^cluster.shard: expected i/n with i from 0 to n-1"):
            load_config(None, [f"cluster.shard={wrong}"], needs_files=False)
