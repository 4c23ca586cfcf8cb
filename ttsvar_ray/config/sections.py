"""The job's settings: one frozen model per section, every field read by somebody.

A value of None means "what the model, its default plan or the preset says".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from ttsvar_ray.config.columns import ColumnChoice, columns_text, read_columns
from ttsvar_ray.config.content import content_digest, content_of, flatten
from ttsvar_ray.config.failure_budget import FailureBudget, read_failure_budget
from ttsvar_ray.config.shard import Shard, read_shard, shard_text
from ttsvar_ray.own_code import is_own
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.search.strategy import OLD_RESAMPLING, Strategy
from ttsvar_ray.types import PotentialKind, Precision, Preprocessing, ResamplingScheme, RewardCombination


def _not_a_bool(value: Any) -> Any:
    """Keep YAML's `yes` and `true` out of numbers, where pydantic would read them as 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


_Integer = Annotated[int, BeforeValidator(_not_a_bool)]
_Number = Annotated[float, BeforeValidator(_not_a_bool), AllowInfNan(False)]
_Count = Annotated[_Integer, Field(ge=1)]
_ScaleIndex = Annotated[_Integer, Field(ge=0)]
_NonNegative = Annotated[_Number, Field(ge=0)]
_Positive = Annotated[_Number, Field(gt=0)]
_Share = Annotated[_Number, Field(ge=0, le=1)]
_Confidence = Annotated[_Number, Field(gt=0.5, le=1)]
_Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Marks a setting that says where weights are.

    Attributes:
        or_name: whether it may be a name instead.
    """

    or_name: bool = False


_Weights = Annotated[_Text | None, WeightFiles()]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)


class ModelConfig(_Section):
    """Which model draws, where and in which number format."""

    name: Annotated[_Text, WeightFiles(or_name=True)] = Field(
        default="shapes",
        description='"shapes" (built in), a published name such as "infinity-2b", a model directory, or '
        '"hf:OWNER/NAME[@REVISION]" of one',
    )
    path: _Weights = Field(
        default=None,
        description="of a published name: folder with its published files, or hf:OWNER/NAME[@REVISION]; "
        "None: where they were published",
    )
    text_encoder: _Weights = Field(
        default=None, description="folder or hf:OWNER/NAME[@REVISION]; None: the model's own"
    )
    resolution: Literal["0.06M", "0.25M", "0.60M", "1M"] | None = Field(
        default=None, description="image size by its published name (pixels); None: the model's own"
    )
    aspect_ratio: _Text | None = Field(
        default=None, description='width:height, to the nearest published one, for example "16:9"'
    )
    positive_prompt: bool = Field(
        default=False, description="the published addition to prompts that speak of people"
    )
    device: _Text = Field(default="auto", description='"auto" (a GPU where there is one), "cpu", "cuda", ...')
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class PromptsConfig(_Section):
    """Where the prompts come from."""

    path: str | tuple[_Text, ...] = Field(
        default="",
        description=".txt, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, text also as .gz or .zst; a path, "
        "URI (s3://...), pattern (set/*.jsonl), folder or data set (hf://datasets/OWNER/NAME), or a list of "
        'them; "-" is standard input',
    )
    format: Literal["txt", "jsonl", "json", "csv", "tsv", "parquet"] | None = Field(
        default=None, description="of the files; None: what their suffixes say"
    )
    column: _Text = Field(default="prompt", description="key or column that holds the prompt")
    id_column: _Text | None = Field(default=None, description="key or column to use as prompt_id")
    columns: Annotated[ColumnChoice | None, BeforeValidator(read_columns), PlainSerializer(columns_text)] = (
        Field(
            default=None,
            description="of the other columns, those that go through to the output: a list, {keep: [...]} or "
            "{drop: [...]}; None: all",
        )
    )
    split: _Text | None = Field(
        default=None, description="of a data set of the hub; None: its only one, or train"
    )
    subset: _Text | None = Field(
        default=None, description="of a data set of the hub that has several; None: its default one"
    )
    rewrite: _Text | None = Field(
        default=None,
        description="what the model reads in place of a prompt: a template ('{prompt}, studio light'; other "
        "names are columns), or a function by its import path; rewards judge by the prompt",
    )
    limit: _Count | None = Field(default=None, description="use only the first so many prompts")


class SelectionConfig(_Section):
    """Which operator stands at a scale."""

    scale: _ScaleIndex
    operator: _Text
    options: dict[str, Any] = Field(default_factory=dict)


def _of_today(name: Any) -> Any:
    """Return the name of a strategy; one that it had before is told once."""
    if name != OLD_RESAMPLING:
        return name
    _tell_new_name()
    return Strategy.RESAMPLING.value


@functools.cache
def _tell_new_name() -> None:
    logging.getLogger(__name__).warning(
        "strategy.name: %s is called %s now, and runs as before: it is the arm of the paper's Table 3 that "
        "only resamples, and not what its Table 6 calls importance sampling",
        OLD_RESAMPLING,
        Strategy.RESAMPLING.value,
    )


class StrategyConfig(_Section):
    """How populations are searched."""

    name: Annotated[
        Literal["raw", "best-of-n", "resampling", "tts-var", "adaptive"], BeforeValidator(_of_today)
    ] = "tts-var"
    plan: Literal["model", "published", "published-1-based"] = Field(
        default="model",
        description="whose default plan: the model's own, the literal published one (scales counted from "
        "0, as in the published code), or the paper's Algorithm 1 read as printed, counted from 1",
    )
    n: _Count = Field(default=1, description="N: multiplies the default population at every scale")
    batch_schedule: tuple[_Count, ...] | None = Field(
        default=None, description="survivors after each scale, one per scale, never rising"
    )
    cluster_scales: tuple[_ScaleIndex, ...] | None = Field(default=None, description="0-based scales")
    resample_scales: tuple[_ScaleIndex, ...] | None = Field(default=None, description="0-based scales")
    selections: tuple[SelectionConfig, ...] | None = Field(
        default=None,
        description="all selections, in place of those two: {scale, operator, options}; operators are those "
        "of docs/search.md, or your own as package.module:Name",
    )
    potential: PotentialKind | None = None
    lambda_: _NonNegative | tuple[_NonNegative, ...] | None = Field(
        default=None,
        alias="lambda",
        description="weights are exp(lambda * potential); one number, or one for each resampling",
    )
    scheme: ResamplingScheme = ResamplingScheme.MULTINOMIAL
    cluster_restarts: _Count = Field(default=10, description="k-means restarts (n_init)")
    max_rounds: _Count | None = Field(
        default=None, description="adaptive: most populations that a prompt is begun with; None is 8"
    )
    growth: tuple[_Count, ...] | None = Field(
        default=None,
        description="adaptive: how many times the population of the first round each one has, 1 first; the "
        "last number holds for all that follow",
    )
    reject_below: dict[_ScaleIndex, _Number] | None = Field(
        default=None,
        description="adaptive: {scale: reward}; a round whose best reward there is lower is abandoned; "
        "{scale: {quantile: 0.3}} with a calibration",
    )
    stop_at: _Number | None = Field(
        default=None,
        description="adaptive, needed: no round follows a final image of this reward, or {quantile: 0.7} "
        "with a calibration; `calibrate` finds it",
    )
    calibration: _Text | None = Field(
        default=None,
        description="adaptive: the file that `calibrate` wrote, for quantiles and a budget; read when the "
        "job is, and run.json has the thresholds",
    )
    budget: Annotated[_Number, Field(ge=1)] | None = Field(
        default=None,
        description="adaptive: images that a prompt may cost on average; the calibration chooses thresholds",
    )
    final_mean_of: tuple[_ScaleIndex, ...] | None = Field(
        default=None,
        description="scales: final images are ranked by the mean reward of their lineage there",
    )
    final_reward: _Text | None = Field(
        default=None,
        description="member of the ensemble that ranks the final images and does not steer; the others do",
    )
    final_ties: Literal["slot", "likelihood"] = Field(
        default="slot", description="of equal final images the lower slot is first, or the likelier"
    )

    @model_validator(mode="after")
    def _one_value_ranks(self) -> StrategyConfig:
        if self.final_mean_of is not None and self.final_reward is not None:
            raise ValueError(
                "final_reward: expected none beside final_mean_of, which is of the reward that steered; "
                "remove one"
            )
        return self


class SamplingConfig(_Section):
    """How bits are drawn; a list has one entry per scale."""

    guidance: _NonNegative | tuple[_NonNegative, ...] | None = Field(
        default=None,
        description="guidance scale, one number or one per scale; 1 is none, and 1 at the last scales halves "
        "them",
    )
    temperature: _Positive | tuple[_Positive, ...] | None = Field(
        default=None, description="of the logits, one number or one per scale"
    )
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="values that together are less likely than 1 - top_p are never drawn"
    )
    top_k: _Count | None = Field(
        default=None, description="entries of a codebook that may be drawn; only for models that have one"
    )
    confidence: _Confidence | tuple[_Confidence | None, ...] | None = Field(
        default=None,
        description="most that bits may be sure of on average, by a higher temperature for a trajectory "
        "that is surer; one number or one per scale, null for none; for models that draw single bits",
    )


class RewardConfig(_Section):
    """What scores the images."""

    name: _Text = Field(
        default="auto",
        description='"auto" (the model\'s own), the name of a reward, "ensemble", or one of your own: '
        '"package.module:Name"',
    )
    path: _Weights = Field(default=None, description="directory of the reward's files")
    members: Annotated[dict[_Text, _Text | None] | None, WeightFiles()] = Field(
        default=None,
        description="of an ensemble: the name of each reward, and the directory of its files",
    )
    combine: RewardCombination | None = Field(
        default=None,
        description="how an ensemble's members become one, over each population; None is softmax",
    )
    options: dict[_Text, Any] = Field(
        default={}, description="keywords of a reward of your own; only such a one has them"
    )
    dtype: Precision = Field(
        default=Precision.FLOAT32,
        description="of the reward's networks: float32 is as published; others are faster on a GPU and move "
        "scores (docs/rewards.md)",
    )
    preprocessing: Preprocessing = Field(
        default=Preprocessing.PUBLISHED,
        description="image to pixels as the reward's authors did it, or faster as tensors on its device",
    )
    nonfinite: Literal["error", "worst"] = Field(
        default="error",
        description="a NaN or infinite reward fails the prompt, or counts as the worst",
    )

    @model_validator(mode="after")
    def _members_are_an_ensembles(self) -> RewardConfig:
        _check_options(self.options, self.name, "reward.name", "a reward")
        given = self.members or {}
        if self.name == "ensemble":
            if len(given) < 2:
                raise ValueError(
                    f"members: expected at least two rewards in an ensemble, got {len(given)}; write them as "
                    "'members: {image-reward: FOLDER, hps-v2.1: FOLDER}'"
                )
            if self.path is not None:
                raise ValueError(
                    f"path: expected none for an ensemble, whose members have theirs, got {self.path!r}; "
                    "move it to reward.members"
                )
        elif self.members is not None or self.combine is not None:
            setting = "combine" if self.members is None else "members"
            raise ValueError(
                f"{setting}: only an ensemble has it, and reward.name is {self.name!r}; remove it, or set "
                "reward.name to ensemble"
            )
        return self


class FeaturesConfig(_Section):
    """What the clustering sees."""

    extractor: _Text = Field(
        default="auto",
        description='"auto" (the model\'s own), "pca", "pca_all", "pool", "inception", or one of your own: '
        '"package.module:Name"',
    )
    pca_sign: ComponentSign = ComponentSign.DETERMINISTIC
    options: dict[_Text, Any] = Field(
        default={}, description="keywords of an extractor of your own; only such a one has them"
    )
    backbone: _Weights = Field(default=None, description="file or directory of the extractor's weights")
    dtype: Precision = Field(
        default=Precision.FLOAT32,
        description="of the network: float32 is as published; others are faster on a GPU and move features",
    )
    preprocessing: Preprocessing = Field(
        default=Preprocessing.PUBLISHED,
        description="image to pixels as published (PIL), or faster as tensors on the network's device",
    )

    @model_validator(mode="after")
    def _options_are_an_own_extractors(self) -> FeaturesConfig:
        _check_options(self.options, self.extractor, "features.extractor", "an extractor")
        return self


def _check_options(options: Mapping[str, Any], name: str, setting: str, what: str) -> None:
    if options and not is_own(name):
        raise ValueError(
            f"options: only {what} of your own has them, and {setting} is {name!r}; remove them, or name a "
            "class: package.module:Name"
        )


class EngineConfig(_Section):
    """How one worker computes."""

    micro_batch_rows: _Count | tuple[_Count, ...] = Field(
        default=32, description="trajectories in one forward pass; one number, or one per segment of the plan"
    )
    deterministic: bool = Field(
        default=False,
        description="every forward pass has engine.micro_batch_rows rows, padded where there are fewer: for "
        "the same bytes on GPUs",
    )
    kernels: Literal["auto", "plain", "fused"] = Field(
        default="auto",
        description="element-wise chains of the model: plain torch, or fused by Triton on a GPU, which "
        "differs by rounding; auto: fused where there is a GPU with Triton",
    )
    cuda_graphs: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="record the passes over small scales and play them again, on a GPU, whose host needs "
        "longer to start their kernels than it does to run them; the same numbers; auto: on GPUs",
    )
    selector_decode: Literal["full", "selector"] = Field(
        default="full",
        description="size of the intermediate images that rewards and clustering see",
    )
    threads: _Count = Field(default=1, description="CPU threads of one worker")
    memory_gb: _Positive | None = Field(
        default=None,
        description="GB that trajectories may take on a worker; None: what a GPU has left, no limit on a CPU",
    )


class ClusterConfig(_Section):
    """How the job uses a Ray cluster. Never changes what is generated."""

    workers: _Count | None = Field(default=None, description="None: one per GPU, or per CPU without GPUs")
    spread: _Count | Literal["auto"] = Field(default="auto", description="workers that share one prompt")
    shard: Annotated[Shard | None, BeforeValidator(read_shard), PlainSerializer(shard_text)] = Field(
        default=None,
        description="i/n: this run makes every n-th part from part i on, in a folder of its own below the "
        "output; the same prompt set and settings for all n",
    )
    address: _Text | None = Field(
        default=None, description="None: RAY_ADDRESS, else a cluster of this machine"
    )
    in_process: bool | None = Field(
        default=None,
        description="run in this process, on one device and without Ray; None: where that is quicker (under "
        "about 100 images, one device, no address)",
    )
    gpus_per_worker: _NonNegative | None = Field(default=None, description="None: 1 where there are GPUs")
    cpus_per_worker: _NonNegative | None = Field(
        default=None, description="None: engine.threads on a CPU, 1 beside a GPU"
    )
    batch_tokens: _Count | None = Field(
        default=None, description="most tokens of one micro-batch, so that none takes long; None: no limit"
    )
    workers_per_cell: _Count = Field(default=64, description="workers that one coordinator serves")
    max_attempts: _Count = Field(default=3, description="tries before a prompt is dead-lettered")
    segment_timeout_s: _Positive = Field(
        default=1800.0,
        description="most seconds one micro-batch may take; less once it is known how long they take",
    )
    start_timeout_s: _Positive = Field(
        default=1800.0, description="seconds without any worker before a run is given up"
    )
    max_failure_rate: _Share = Field(
        default=0.5, description="share of recent prompts that may fail before a run is given up; 1: any"
    )
    failure_window: Annotated[_Integer, Field(ge=50)] = Field(
        default=200, description="how many recent prompts that share is taken of"
    )

    @model_validator(mode="after")
    def _in_process_is_alone(self) -> ClusterConfig:
        if self.in_process:
            given = {"address": self.address, "workers": None if self.workers == 1 else self.workers}
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name}: expected none with in_process true, got {value!r}; remove one")
        return self


class OutputConfig(_Section):
    """What is written, and where."""

    path: str = Field(
        default="",
        description="output folder, a path or URI (s3://...); an existing one of the same job is continued",
    )
    rows_per_part: _Count = Field(default=256, description="prompts per Parquet part")
    image_format: Literal["png", "webp", "jpeg"] = "png"
    quality: Annotated[_Integer, Field(ge=1, le=100)] | None = Field(
        default=None, description="of webp and jpeg; None is 95"
    )
    png_level: Annotated[_Integer, Field(ge=0, le=9)] | None = Field(
        default=None, description="of png: 0 is fast and large, 9 slow and small; None is 6"
    )
    keep: Literal["best", "all"] = Field(default="best", description="images kept per prompt")
    bits: bool = Field(default=False, description="also keep the packed bits of each image")
    trace: Literal["auto", "selections", "bits"] = Field(
        default="auto",
        description="what the trace table keeps: the selections, or with bits also every trajectory of every "
        "population that was selected from, to be drawn again; auto: bits where they take under 3% of the "
        "images' bytes. run.json says which",
    )

    @model_validator(mode="after")
    def _quality_is_read(self) -> OutputConfig:
        if self.quality is not None and self.image_format == "png":
            raise ValueError(
                f"quality: expected none with image_format png (PNG is lossless), got {self.quality}; "
                "remove it or choose image_format webp or jpeg"
            )
        if self.png_level is not None and self.image_format != "png":
            raise ValueError(
                f"png_level: expected none with image_format {self.image_format}, got {self.png_level}; "
                "remove it or choose image_format png"
            )
        return self


class SimulationConfig(_Section):
    """What `simulate` plays; read by no other command, and nothing of it is generated."""

    gpus: _Count = Field(default=64, description="workers, one GPU each")
    prompts: _Count = Field(default=10_000, description="prompts of the whole run")
    profile: _Text = Field(
        default="h200",
        description="device (h200, a100-80g, ..., or a file), or a measured workload's file",
    )
    seed: _Integer = Field(default=0, description="of noise and faults")
    noise: _NonNegative = Field(default=0.05, description="relative deviation of a micro-batch's time")
    stragglers: _Share = Field(default=0.0, description="share of the workers that are slow")
    straggler_factor: Annotated[_Number, Field(ge=1)] = Field(
        default=2.0, description="how many times longer these take"
    )
    failures_per_gpu_hour: _NonNegative = Field(default=0.0, description="losses of one worker")
    failures_per_node_hour: _NonNegative = Field(default=0.0, description="losses of a whole node")
    gpus_per_node: _Count = Field(default=8, description="workers that a node's loss takes along")
    restart_seconds: _NonNegative = Field(default=60.0, description="until a lost worker is replaced")
    start_seconds: _NonNegative = Field(default=30.0, description="until the first worker is ready")
    start_spread_seconds: _NonNegative = Field(default=30.0, description="until the last one is, after that")
    writer_gb_per_second: _Positive | None = Field(
        default=None, description="what the writer of parts sustains; None: writing is free"
    )
    selections: Literal["cheap", "real"] = Field(
        default="cheap", description="random ancestors, or the search's own selections in twice the time"
    )
    abandoned: _Share = Field(
        default=0.3,
        description="adaptive: share of rounds that are abandoned at each scale where they may be",
    )
    satisfied: _Share = Field(
        default=0.7, description="adaptive: share of finished rounds that no further one follows"
    )
    compare: bool = Field(
        default=False, description="also run variants: noise, losses, stragglers, spread, cells"
    )


class JobConfig(_Section):
    """One job, resolved. `digest` names what it would generate."""

    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig()
    strategy: StrategyConfig = StrategyConfig()
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig = RewardConfig()
    features: FeaturesConfig = FeaturesConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    output: OutputConfig = OutputConfig()
    simulation: SimulationConfig = SimulationConfig()
    # A column of the output holds it: 64 bits.
    seed: Annotated[_Integer, Field(ge=-(2**63), lt=2**63)] = 0
    max_failed: Annotated[
        FailureBudget, BeforeValidator(read_failure_budget), PlainSerializer(FailureBudget.__str__)
    ] = Field(
        default=read_failure_budget("1%"),
        description="prompts without an image, and bad lines, up to which a run that is done ends with exit "
        "code 0: a share of all lines, or a count; above it with 3",
    )

    def weight_files(self) -> Iterator[tuple[str, str, WeightFiles]]:
        """Yield section, key and mark of every setting that says where weights are."""
        for name, section in self:
            if isinstance(section, BaseModel):
                for key, field in type(section).model_fields.items():
                    for mark in field.metadata:
                        if isinstance(mark, WeightFiles):
                            yield name, key, mark

    def resolved(self) -> dict[str, Any]:
        """Return every setting of a run as JSON values, under the names a job file uses."""
        return self.model_dump(mode="json", by_alias=True, exclude={"simulation"})

    def content(self) -> dict[str, Any]:
        """Return the settings that change what is generated, flat: `{"strategy.n": 2, ...}`.

        Left out is what may differ between two sessions of one run: placement, speed, where files
        are. The prompts are left out too: their own digest says whether they changed.
        """
        # A GPU's kernels are chosen by shape, and that is what such a run holds fixed.
        counts = ("engine.micro_batch_rows",) if self.engine.deterministic else ()
        return content_of(flatten(self.resolved()), counts=counts)

    def digest(self) -> str:
        """Return the sha256 of `content`, hexadecimal."""
        return content_digest(self.content())
