"""Settings of how a job runs and what it writes; more is said in `ttsvar_ray.config.sections`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from ttsvar_ray.config.values import (
    Count,
    Integer,
    NonNegative,
    Number,
    Positive,
    Section,
    Shard,
    Share,
    Text,
)


class EngineConfig(Section):
    """How one worker computes."""

    micro_batch_rows: Literal["auto"] | Count | tuple[Count, ...] = Field(
        default="auto",
        description="trajectories in one forward pass; one number, or one per segment of the plan; auto: by "
        "the memory and the rates of a GPU, 32 on a CPU",
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
    threads: Count = Field(default=1, description="CPU threads of one worker")
    memory_gb: Positive | None = Field(
        default=None,
        description="GB that trajectories may take on a worker; None: what a GPU has left, no limit on a CPU",
    )


class ClusterConfig(Section):
    """How the job uses a Ray cluster. Never changes what is generated."""

    workers: Count | None = Field(default=None, description="None: one per GPU, or per CPU without GPUs")
    spread: Count | Literal["auto"] = Field(default="auto", description="workers that share one prompt")
    shard: Annotated[
        Shard | None, BeforeValidator(Shard.read), PlainSerializer(Shard.__str__, when_used="unless-none")
    ] = Field(
        default=None,
        description="i/n: this run makes every n-th part from part i on, in a folder of its own below the "
        "output; the same prompt set and settings for all n",
    )
    address: Text | None = Field(
        default=None, description="None: RAY_ADDRESS, else a cluster of this machine"
    )
    in_process: bool | None = Field(
        default=None,
        description="run in this process, on one device and without Ray; None: where that is quicker (under "
        "about 100 images, one device, no address)",
    )
    gpus_per_worker: NonNegative | None = Field(default=None, description="None: 1 where there are GPUs")
    cpus_per_worker: NonNegative | None = Field(
        default=None, description="None: engine.threads on a CPU, 1 beside a GPU"
    )
    batch_tokens: Count | None = Field(
        default=None, description="most tokens of one micro-batch, so that none takes long; None: no limit"
    )
    workers_per_cell: Count = Field(default=64, description="workers that one coordinator serves")
    max_attempts: Count = Field(default=3, description="tries before a prompt is dead-lettered")
    segment_timeout_s: Positive = Field(
        default=1800.0,
        description="most seconds one micro-batch may take; less once it is known how long they take",
    )
    start_timeout_s: Positive = Field(
        default=1800.0, description="seconds without any worker before a run is given up"
    )
    max_failure_rate: Share = Field(
        default=0.5, description="share of recent prompts that may fail before a run is given up; 1: any"
    )
    failure_window: Annotated[Integer, Field(ge=50)] = Field(
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


class VerifiersConfig(Section):
    """Where the reward lives: in each worker, or in actors beside them. Never changes what is generated."""

    replicas: Annotated[Integer, Field(ge=0)] = Field(
        default=0,
        description="actors that hold the reward beside the workers, for one that is large; 0: each worker "
        "holds it",
    )
    gpus_per_replica: NonNegative | None = Field(
        default=None, description="None: 1 where the workers have GPUs; 0: scores on CPUs"
    )
    cpus_per_replica: NonNegative = Field(default=1.0, description="that Ray keeps for each")
    timeout_s: Positive = Field(
        default=1800.0,
        description="seconds without a score, or until the reward is loaded, before they are given up",
    )


class OutputConfig(Section):
    """What is written, and where."""

    path: str = Field(
        default="",
        description="output folder, a path or URI (s3://...); an existing one of the same job is continued",
    )
    rows_per_part: Count = Field(default=256, description="prompts per Parquet part")
    image_format: Literal["png", "webp", "jpeg"] = "png"
    quality: Annotated[Integer, Field(ge=1, le=100)] | None = Field(
        default=None, description="of webp and jpeg; None is 95"
    )
    png_level: Annotated[Integer, Field(ge=0, le=9)] | None = Field(
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


class SimulationConfig(Section):
    """What `simulate` plays; read by no other command, and nothing of it is generated."""

    gpus: Count = Field(default=64, description="workers, one GPU each")
    prompts: Count = Field(default=10_000, description="prompts of the whole run")
    profile: Text = Field(
        default="h200",
        description="device (h200, a100-80g, ..., or a file), or a measured workload's file",
    )
    seed: Integer = Field(default=0, description="of noise and faults")
    noise: NonNegative = Field(default=0.05, description="relative deviation of a micro-batch's time")
    stragglers: Share = Field(default=0.0, description="share of the workers that are slow")
    straggler_factor: Annotated[Number, Field(ge=1)] = Field(
        default=2.0, description="how many times longer these take"
    )
    failures_per_gpu_hour: NonNegative = Field(default=0.0, description="losses of one worker")
    failures_per_node_hour: NonNegative = Field(default=0.0, description="losses of a whole node")
    gpus_per_node: Count = Field(default=8, description="workers that a node's loss takes along")
    restart_seconds: NonNegative = Field(default=60.0, description="until a lost worker is replaced")
    start_seconds: NonNegative = Field(default=30.0, description="until the first worker is ready")
    start_spread_seconds: NonNegative = Field(default=30.0, description="until the last one is, after that")
    writer_gb_per_second: Positive | None = Field(
        default=None, description="what the writer of parts sustains; None: writing is free"
    )
    selections: Literal["cheap", "real"] = Field(
        default="cheap", description="random ancestors, or the search's own selections in twice the time"
    )
    abandoned: Share = Field(
        default=0.3,
        description="adaptive: share of rounds that are abandoned at each scale where they may be",
    )
    satisfied: Share = Field(
        default=0.7, description="adaptive: share of finished rounds that no further one follows"
    )
    compare: bool = Field(
        default=False, description="also run variants: noise, losses, stragglers, spread, cells"
    )
