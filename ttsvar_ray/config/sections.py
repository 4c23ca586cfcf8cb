"""Settings of what is generated: one frozen model per section, every field read by somebody.

A value of None means "what the model, its default plan or the preset says".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from ttsvar_ray.config.values import (
    ColumnChoice,
    Confidence,
    Count,
    DeviceName,
    NonNegative,
    Number,
    Positive,
    ScaleIndex,
    Section,
    Text,
    WeightFiles,
    Weights,
)
from ttsvar_ray.own_code import is_own
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.search.strategy import OLD_RESAMPLING, Strategy
from ttsvar_ray.types import PotentialKind, Precision, Preprocessing, ResamplingScheme, RewardCombination


class ModelConfig(Section):
    """Which model draws, where and in which number format."""

    name: Annotated[Text, WeightFiles(or_name=True)] = Field(
        default="shapes",
        description='"shapes" (built in), a published name such as "infinity-2b", a model directory, or '
        '"hf:OWNER/NAME[@REVISION]" of one',
    )
    path: Weights = Field(
        default=None,
        description="of a published name: folder with its published files, or hf:OWNER/NAME[@REVISION]; "
        "None: where they were published",
    )
    text_encoder: Weights = Field(
        default=None, description="folder or hf:OWNER/NAME[@REVISION]; None: the model's own"
    )
    resolution: Literal["0.06M", "0.25M", "0.60M", "1M"] | None = Field(
        default=None, description="image size by its published name (pixels); None: the model's own"
    )
    aspect_ratio: Text | None = Field(
        default=None, description='width:height, to the nearest published one, for example "16:9"'
    )
    positive_prompt: bool = Field(
        default=False, description="the published addition to prompts that speak of people"
    )
    device: DeviceName = Field(
        default="auto", description='"auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N"'
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class PromptsConfig(Section):
    """Where the prompts come from."""

    path: str | tuple[Text, ...] = Field(
        default="",
        description=".txt, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, text also as .gz or .zst; a path, "
        "URI (s3://...), pattern (set/*.jsonl), folder or data set (hf://datasets/OWNER/NAME), or a list of "
        'them; "-" is standard input',
    )
    format: Literal["txt", "jsonl", "json", "csv", "tsv", "parquet"] | None = Field(
        default=None, description="of the files; None: what their suffixes say"
    )
    column: Text = Field(default="prompt", description="key or column that holds the prompt")
    id_column: Text | None = Field(default=None, description="key or column to use as prompt_id")
    columns: Annotated[
        ColumnChoice | None,
        BeforeValidator(ColumnChoice.read),
        PlainSerializer(ColumnChoice.to_json, when_used="unless-none"),
    ] = Field(
        default=None,
        description="of the other columns, those that go through to the output: a list, {keep: [...]} or "
        "{drop: [...]}; None: all",
    )
    split: Text | None = Field(
        default=None, description="of a data set of the hub; None: its only one, or train"
    )
    subset: Text | None = Field(
        default=None, description="of a data set of the hub that has several; None: its default one"
    )
    rewrite: Text | None = Field(
        default=None,
        description="what the model reads in place of a prompt: a template ('{prompt}, studio light'; other "
        "names are columns), or a function by its import path; rewards judge by the prompt",
    )
    limit: Count | None = Field(default=None, description="use only the first so many prompts")


class SelectionConfig(Section):
    """Which operator stands at a scale."""

    scale: ScaleIndex
    operator: Text
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


class StrategyConfig(Section):
    """How populations are searched."""

    name: Annotated[
        Literal["raw", "best-of-n", "resampling", "tts-var", "adaptive"], BeforeValidator(_of_today)
    ] = "tts-var"
    plan: Literal["model", "published", "published-1-based"] = Field(
        default="model",
        description="whose default plan: the model's own, the literal published one (scales counted from "
        "0, as in the published code), or the paper's Algorithm 1 read as printed, counted from 1",
    )
    n: Count = Field(default=1, description="N: multiplies the default population at every scale")
    batch_schedule: tuple[Count, ...] | None = Field(
        default=None, description="survivors after each scale, one per scale, never rising"
    )
    cluster_scales: tuple[ScaleIndex, ...] | None = Field(default=None, description="0-based scales")
    resample_scales: tuple[ScaleIndex, ...] | None = Field(default=None, description="0-based scales")
    selections: tuple[SelectionConfig, ...] | None = Field(
        default=None,
        description="all selections, in place of those two: {scale, operator, options}; operators are those "
        "of docs/search.md, or your own as package.module:Name",
    )
    potential: PotentialKind | None = None
    lambda_: NonNegative | tuple[NonNegative, ...] | None = Field(
        default=None,
        alias="lambda",
        description="weights are exp(lambda * potential); one number, or one for each resampling",
    )
    scheme: ResamplingScheme = ResamplingScheme.MULTINOMIAL
    cluster_restarts: Count = Field(default=10, description="k-means restarts (n_init)")
    max_rounds: Count | None = Field(
        default=None, description="adaptive: most populations that a prompt is begun with; None is 8"
    )
    growth: tuple[Count, ...] | None = Field(
        default=None,
        description="adaptive: how many times the population of the first round each one has, 1 first; the "
        "last number holds for all that follow",
    )
    reject_below: dict[ScaleIndex, Number] | None = Field(
        default=None,
        description="adaptive: {scale: reward}; a round whose best reward there is lower is abandoned; "
        "{scale: {quantile: 0.3}} with a calibration",
    )
    stop_at: Number | None = Field(
        default=None,
        description="adaptive, needed: no round follows a final image of this reward, or {quantile: 0.7} "
        "with a calibration; `calibrate` finds it",
    )
    calibration: Text | None = Field(
        default=None,
        description="adaptive: the file that `calibrate` wrote, for quantiles and a budget; read when the "
        "job is, and run.json has the thresholds",
    )
    budget: Annotated[Number, Field(ge=1)] | None = Field(
        default=None,
        description="adaptive: images that a prompt may cost on average; the calibration chooses thresholds",
    )
    map_scales: tuple[ScaleIndex, ...] | None = Field(
        default=None,
        description="scales whose rewards are read off the feature map, without decoding (reward.on_map)",
    )
    look_ahead: dict[ScaleIndex, ScaleIndex] | None = Field(
        default=None,
        description="{scale: later scale}: rewards of the scale are those of the image that each trajectory "
        "comes to there, run on without guidance and with the likelier value of every bit",
    )
    final_mean_of: tuple[ScaleIndex, ...] | None = Field(
        default=None,
        description="scales: final images are ranked by the mean reward of their lineage there",
    )
    final_reward: Text | None = Field(
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


class SamplingConfig(Section):
    """How bits are drawn; a list has one entry per scale."""

    guidance: NonNegative | tuple[NonNegative, ...] | None = Field(
        default=None,
        description="guidance scale, one number or one per scale; 1 is none, and 1 at the first or the last "
        "scales halves them",
    )
    temperature: Positive | tuple[Positive, ...] | None = Field(
        default=None, description="of the logits, one number or one per scale"
    )
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="values that together are less likely than 1 - top_p are never drawn"
    )
    top_k: Count | None = Field(
        default=None, description="entries of a codebook that may be drawn; only for models that have one"
    )
    confidence: Confidence | tuple[Confidence | None, ...] | None = Field(
        default=None,
        description="most that bits may be sure of on average, by a higher temperature for a trajectory "
        "that is surer; one number or one per scale, null for none; for models that draw single bits",
    )


class RewardConfig(Section):
    """What scores the images."""

    name: Text = Field(
        default="auto",
        description='"auto" (the model\'s own), the name of a reward, "ensemble", or one of your own: '
        '"package.module:Name"',
    )
    path: Weights = Field(default=None, description="directory of the reward's files")
    members: Annotated[dict[Text, Text | None] | None, WeightFiles()] = Field(
        default=None,
        description="of an ensemble: the name of each reward, and the directory of its files",
    )
    combine: RewardCombination | None = Field(
        default=None,
        description="how an ensemble's members become one, over each population; None is softmax",
    )
    options: dict[Text, Any] = Field(
        default={}, description="keywords of a reward of your own; only such a one has them"
    )
    dtype: Precision = Field(
        default=Precision.TF32,
        description="of the reward's networks: tf32 is float32 with rounded factors on a GPU; float32 is as "
        "published; others are faster and move scores (docs/rewards.md)",
    )
    preprocessing: Preprocessing = Field(
        default=Preprocessing.PUBLISHED,
        description="image to pixels as the reward's authors did it, or faster as tensors on its device",
    )
    on_map: Text = Field(
        default="auto",
        description='what reads rewards off feature maps (strategy.map_scales): "auto", a file beside the '
        'reward\'s weights, or one of your own: "package.module:Name"',
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


class FeaturesConfig(Section):
    """What the clustering sees."""

    extractor: Text = Field(
        default="auto",
        description='"auto" (the model\'s own), "pca", "pca_all", "pool", "inception", or one of your own: '
        '"package.module:Name"',
    )
    pca_sign: ComponentSign = ComponentSign.DETERMINISTIC
    options: dict[Text, Any] = Field(
        default={}, description="keywords of an extractor of your own; only such a one has them"
    )
    backbone: Weights = Field(default=None, description="file or directory of the extractor's weights")
    dtype: Precision = Field(
        default=Precision.TF32,
        description="of the network: tf32 is float32 with rounded factors on a GPU; float32 is as published; "
        "others are faster and move features",
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
