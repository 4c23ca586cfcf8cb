"""`ttsvar-ray evaluate`: benchmarks over a run, or over any folder in their layout."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import as_command
from ttsvar_ray.cli.export import Which
from ttsvar_ray.cli.show import table_lines

if TYPE_CHECKING:
    from ttsvar_ray.evaluate.benchmarks import QuestionImages
    from ttsvar_ray.evaluate.geneval import GenEvalResult
    from ttsvar_ray.evaluate.judging import AskedImage, JudgedImage
    from ttsvar_ray.evaluate.questions import Benchmark

evaluate = typer.Typer(
    help="Benchmarks over the images of a run, or over a folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_TELL_EVERY = 50

_Judge = TypeVar("_Judge", bound="Callable[[AskedImage], Mapping[str, Any]]")

_Source = Annotated[
    str,
    typer.Argument(
        help="Output of a run over its prompts, a folder with metadata.jsonl (file_name, prompt), or one "
        "whose files are named as the benchmark does.",
        metavar="OUTPUT",
    ),
]
_Questions = Annotated[
    Path, typer.Option("--questions", help="The benchmark's own questions.", metavar="PATH")
]
_Detector = Annotated[
    Path, typer.Option("--detector", help="Folder with the detector's weights.", metavar="DIR")
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """The options of every benchmark."""

    images: Annotated[
        Which | None,
        typer.Option("--images", help="Of a run: the best of each search (default), or all that were kept."),
    ] = None
    device: options.Device = "auto"
    workers: options.Workers = None
    address: options.Address = None
    verdicts: Annotated[
        Path | None,
        typer.Option(
            "--verdicts", help="File of verdicts; OUTPUT.BENCHMARK.jsonl if OUTPUT is local.", metavar="FILE"
        ),
    ] = None
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON to this file.", metavar="FILE")
    ] = None

    def target(self) -> str:
        """Return the device of whoever judges; look at the options that go together.

        Raises:
            ConfigurationError: not a device, an address that has no use, or a file that cannot be written.
        """
        if self.as_json is not None:
            options.file_to_write(self.as_json, "--json")
        return options.named_device(self.device, self.workers, self.address)

    def write(self, content: Mapping[str, Any]) -> None:
        """Write the result where it was asked for."""
        if self.as_json is not None:
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            self.as_json.write_text(text, encoding="utf-8")


def _command(name: str) -> Callable[[Callable[..., list[str]]], Callable[..., None]]:
    """Make what returns lines a command with the options of `_Shared`, which it gets together as `shared`."""

    def decorate(function: Callable[..., list[str]]) -> Callable[..., None]:
        own, shared = (get_type_hints(one, include_extras=True) for one in (function, _Shared))

        @wraps(function)
        def command(**given: Any) -> None:
            together = _Shared(**{option: given.pop(option) for option in shared})
            typer.echo("\n".join(function(**given, shared=together)))

        parameters = [
            one.replace(annotation=own[one.name])
            for one in inspect.signature(function).parameters.values()
            if one.name != "shared"
        ]
        parameters += [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=shared[one.name]
            )
            for one in dataclasses.fields(_Shared)
        ]
        # What typer reads.
        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        evaluate.command(name)(as_command(command))
        return command

    return decorate


@_command("geneval")
def geneval(
    source: Annotated[
        str,
        typer.Argument(
            help="Output of a run over GenEval's metadata file, or a folder in its layout.", metavar="OUTPUT"
        ),
    ],
    detector: _Detector,
    clip: Annotated[Path, typer.Option("--clip", help="Folder of CLIP ViT-L/14, for colors.", metavar="DIR")],
    *,
    shared: _Shared,
) -> list[str]:
    """Judge images by GenEval's rules and print its six scores; the same command goes on after a stop.

    Exit codes: 0 done; 1 an image over which workers were lost; 2 images, metadata, weights or file of
    verdicts that cannot be used.

    Example: ttsvar-ray evaluate geneval outputs/geneval --detector weights/mask2former --clip weights/clip
    """
    from ttsvar_ray.evaluate.geneval import (
        GenEvalJudge,
        GenEvalResult,
        images_of_folder,
        images_of_run,
        prompt_folders,
    )
    from ttsvar_ray.evaluate.judging import images_of

    target = shared.target()
    found, told = images_of(
        source,
        shared.images and shared.images.value,
        of_run=lambda layout, run, best: images_of_run(layout, run, best_only=best),
        of_folder=images_of_folder,
        is_folder=prompt_folders,
        expected="a folder with 00000/metadata.jsonl and 00000/samples/0000.png in it",
    )
    own, build = _own(partial(GenEvalJudge.load, detector.resolve(), clip.resolve()), target, shared.workers)
    judged = _judged(found, source, "geneval", {**own.basis(), "device": target}, build, shared)
    result = GenEvalResult.of(judged)
    content = result.to_json(own, source=told, device=target)
    shared.write(content)
    return _lines(result, content["notes"])


_ASKING = {
    "geneval2": "GenEval 2: the probability of the right answer to each question (Soft-TIFA).",
    "dpg-bench": "DPG-Bench: yes or no questions about long prompts, where those they rest on hold.",
    "oneig": "OneIG-Bench's alignment: yes or no questions, where those they rest on hold.",
    "t2i-compbench": "T2I-CompBench's color, shape and texture: BLIP-VQA's yes to every noun chunk.",
}
"""The benchmarks of `evaluate.benchmarks`, which are not imported to show what commands there are."""


def _asking(name: str) -> Callable[..., list[str]]:
    """Return the command of a benchmark that asks questions."""

    def command(
        source: _Source,
        questions: _Questions,
        judge: Annotated[
            Path,
            typer.Option("--judge", help="Folder of a Qwen2.5-VL, a Qwen3-VL, or a BLIP-VQA.", metavar="DIR"),
        ],
        wording: Annotated[
            str | None,
            typer.Option(
                "--asked",
                help="What the judge is told, with {question} in it; by default a wording of ours.",
                metavar="TEXT",
            ),
        ] = None,
        grid: Annotated[
            int | None,
            typer.Option(
                "--grid", help="Files hold so many images beside and below each other.", min=1, max=8
            ),
        ] = None,
        dtype: Annotated[
            str, typer.Option("--dtype", help="Of the judge: float32, bfloat16 or float16.")
        ] = "float32",
        *,
        shared: _Shared,
    ) -> list[str]:
        from ttsvar_ray.errors import ConfigurationError
        from ttsvar_ray.evaluate.benchmarks import BENCHMARKS
        from ttsvar_ray.evaluate.question_judge import QuestionJudge

        benchmark = BENCHMARKS[name]
        if wording is not None:
            if "{question}" not in wording:
                raise ConfigurationError(f"--asked: expected {{question}} in it, got {wording!r}")
            benchmark = dataclasses.replace(benchmark, asked=wording)
        if dtype not in (known := ("float32", "bfloat16", "float16")):
            raise ConfigurationError(f"--dtype: expected one of {', '.join(known)}, got {dtype!r}")
        target = shared.target()
        asked, found, told = _asked_images(benchmark, questions, source, shared, grid or benchmark.grid)
        if grid is not None and "settings" in told:
            raise ConfigurationError(f"--grid: {source} is a run, whose files hold one image; remove it")
        answers = sorted(
            {word for one in asked.prompts.values() for own in one.questions for word in own.answers}
        )
        build = partial(QuestionJudge, judge.resolve(), benchmark.asked, answers, device=target, dtype=dtype)
        basis = QuestionJudge.basis(benchmark, judge, device=target, dtype=dtype)
        return _scored(asked, _judged(found, source, name, basis, build, shared), basis, told, shared)

    command.__doc__ = f"""{_ASKING[name]}

    A model is asked about each image; the same command goes on after a stop.
    Exit codes: 0 done; 1 an image over which workers were lost; 2 images, questions, a judge or a file of
    answers that cannot be used.

    Example: ttsvar-ray evaluate {name} outputs/mine --questions FILE --judge weights/qwen3-vl-8b
    """
    return command


for _name in _ASKING:
    _command(_name)(_asking(_name))


@_command("t2i-compbench-clip")
def _compbench_clip(
    source: _Source,
    questions: _Questions,
    clip: Annotated[Path, typer.Option("--clip", help="Folder of CLIP ViT-B/32.", metavar="DIR")],
    *,
    shared: _Shared,
) -> list[str]:
    """T2I-CompBench's non-spatial relations: CLIP's cosine with the prompt.

    The same command goes on after a stop. Exit codes: 0 done; 1 an image over which workers were lost; 2
    images, prompts, weights or a file of verdicts that cannot be used.

    Example: ttsvar-ray evaluate t2i-compbench-clip outputs/mine --questions non_spatial_val.txt
    --clip weights/clip-vit-base-patch32
    """
    from ttsvar_ray.evaluate.t2i_compbench import T2I_COMPBENCH_CLIP, ClipJudge

    return _by_network(T2I_COMPBENCH_CLIP, partial(ClipJudge, clip.resolve()), questions, source, shared)


@_command("t2i-compbench-objects")
def _compbench_objects(
    source: _Source, questions: _Questions, detector: _Detector, *, shared: _Shared
) -> list[str]:
    """T2I-CompBench's spatial relations and counts by GenEval's detector: not comparable with UniDet.

    The same command goes on after a stop. Exit codes: 0 done; 1 an image over which workers were lost; 2
    images, prompts, weights or a file of verdicts that cannot be used.

    Example: ttsvar-ray evaluate t2i-compbench-objects outputs/mine --questions spatial_val.txt
    --detector weights/mask2former
    """
    from ttsvar_ray.evaluate.compbench_objects import T2I_COMPBENCH_OBJECTS, ObjectJudge

    load = partial(ObjectJudge.load, detector.resolve())
    return _by_network(T2I_COMPBENCH_OBJECTS, load, questions, source, shared)


def _by_network(
    benchmark: Benchmark, load: Callable[..., Any], questions: Path, source: str, shared: _Shared
) -> list[str]:
    """Judge by a network that says itself what its scores rest on; return what is to be printed."""
    target = shared.target()
    asked, found, told = _asked_images(benchmark, questions, source, shared, 1)
    own, build = _own(load, target, shared.workers)
    basis = {**own.basis(), "device": target}
    judged = _judged(found, source, benchmark.name, basis, build, shared)
    return _scored(asked, judged, basis, told, shared)


def _scored(
    asked: QuestionImages,
    judged: list[JudgedImage],
    basis: Mapping[str, Any],
    told: Mapping[str, Any],
    shared: _Shared,
) -> list[str]:
    """Write the result; return its scores with their errors over prompts, and what is to be known of them."""
    content = asked.to_json(judged, basis, told)
    shared.write(content)
    counts, numbers = ("images", "prompts"), ("mean", "standard_error")
    rows = [
        [one["name"], *(str(one[key]) for key in counts)]
        + ["" if one[key] is None else f"{one[key]:.4f}" for key in numbers]
        for one in content["scores"]
    ]
    table = table_lines(("score", "of", "prompts", "mean", "+-"), rows)
    return table + [f"note: {note}" for note in content["notes"]]


def _asked_images(
    benchmark: Benchmark, questions: Path, source: str, shared: _Shared, grid: int
) -> tuple[QuestionImages, Iterator[AskedImage], Mapping[str, Any]]:
    """Return a benchmark's questions, the images of a run or a folder, and what is to be known of them."""
    from ttsvar_ray.evaluate.benchmarks import QuestionImages
    from ttsvar_ray.evaluate.judging import images_of

    asked = QuestionImages.of(benchmark, questions)
    found, told = images_of(
        source,
        shared.images and shared.images.value,
        of_run=lambda layout, run, best: asked.of_run(layout, run, best_only=best),
        of_folder=lambda folder: asked.of_folder(folder, grid),
        is_folder=Path.is_dir,
        expected="a folder of images",
    )
    return asked, found, told


def _own(
    load: Callable[..., _Judge], device: str, workers: int | None
) -> tuple[_Judge, Callable[[], _Judge]]:
    """Return a judge that says whose networks it has, and what makes one that judges, on Ray a worker's."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    own = load(device=device if workers is None else "cpu")
    return own, partial(load, device=device) if workers is not None else lambda: own


def _of_piece(
    build: Callable[[], Callable[[AskedImage], Mapping[str, Any]]],
) -> Callable[[tuple[int, AskedImage]], Mapping[str, Any]]:
    """Return what judges a numbered image, on a worker."""
    judge = build()
    return lambda piece: judge(piece[1])


def _judged(
    images: Iterator[AskedImage],
    source: str,
    benchmark: str,
    basis: Mapping[str, Any],
    build: Callable[[], Callable[[AskedImage], Mapping[str, Any]]],
    shared: _Shared,
) -> list[JudgedImage]:
    """Judge images that have no verdict yet, read here one at a time, here or on workers of Ray."""
    from ttsvar_ray.evaluate.judging import VerdictFile, here, judge_images, verdict_file

    if shared.workers is None:
        each = here(build())
    else:
        from ttsvar_ray.cluster.sharing import share_on_ray

        each = partial(
            share_on_ray,
            build=partial(_of_piece, build),
            name_of=lambda piece: f"judging {piece[1].key}",
            address=shared.address,
            workers=shared.workers,
            gpus=float(basis["device"].startswith("cuda")),
            run_name="ttsvar-ray evaluate",
        )
    with VerdictFile(shared.verdicts or verdict_file(source, benchmark), basis) as file:
        return judge_images(images, file, each, on_image=_tell)


def _tell(done: int) -> None:
    if done % _TELL_EVERY == 0:
        typer.echo(f"{done} images", err=True)


def _lines(result: GenEvalResult, notes: list[str]) -> list[str]:
    """Return the table: shares with their standard errors over prompts."""
    summary = result.summary
    scores = [
        (tag, one.images, one.prompts, one.score, one.standard_error) for tag, one in summary.tags.items()
    ]
    scores.append(("mean of tags", summary.images, summary.prompts, summary.overall, summary.standard_error))
    rows = [
        (name, str(images), str(prompts), f"{mean:.4f}", f"{error:.4f}")
        for name, images, prompts, mean, error in scores
    ]
    lines = table_lines(("tag", "images", "prompts", "correct", "+-"), rows)
    any_correct = f"prompts with a correct image {summary.correct_prompts:.2%}"
    lines.append(f"correct images {summary.correct_images:.2%}, {any_correct}")
    return lines + [f"note: {note}" for note in notes]
