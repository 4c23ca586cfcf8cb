"""`ttsvar-ray evaluate geneval`: the benchmark over a run, or over any folder in its layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people
from ttsvar_ray.cli.export import Which

if TYPE_CHECKING:
    from ttsvar_ray.evaluate.geneval import GenEvalResult
    from ttsvar_ray.evaluate.geneval_images import AskedImage

evaluate = typer.Typer(
    help="Benchmarks over the images of a run, or over a folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_TELL_EVERY = 50


@evaluate.callback()
def _group() -> None:
    """Benchmarks over the images of a run, or over a folder."""


@evaluate.command()
def geneval(
    source: Annotated[
        str,
        typer.Argument(
            help="Output of a run over GenEval's metadata file, or a folder in its layout.", metavar="OUTPUT"
        ),
    ],
    detector: Annotated[
        Path, typer.Option("--detector", help="Folder with the detector's weights.", metavar="DIR")
    ],
    clip: Annotated[Path, typer.Option("--clip", help="Folder of CLIP ViT-L/14, for colors.", metavar="DIR")],
    images: Annotated[
        Which | None,
        typer.Option("--images", help="Of a run: the best of each search (default), or all that were kept."),
    ] = None,
    device: options.Device = "auto",
    verdicts: Annotated[
        Path | None,
        typer.Option(
            "--verdicts", help="File of verdicts; OUTPUT.geneval.jsonl if OUTPUT is local.", metavar="FILE"
        ),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON to this file.", metavar="FILE")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Judge images by GenEval's rules and print its six scores; the same command goes on after a stop.

    Exit codes: 0 done; 2 images, metadata, weights or file of verdicts that cannot be used.

    Example: ttsvar-ray evaluate geneval outputs/geneval --detector weights/mask2former --clip weights/clip
    """
    with errors_for_people(debug=debug):
        from transformers.utils import logging as transformers_logging

        from ttsvar_ray.evaluate.color_names import ColorNames
        from ttsvar_ray.evaluate.detector import Detector
        from ttsvar_ray.evaluate.geneval import GenEvalJudge, evaluate_geneval
        from ttsvar_ray.evaluate.verdict_file import VerdictFile
        from ttsvar_ray.models.registry import resolve_device

        transformers_logging.disable_progress_bar()
        found, told = _images(source, images)
        path = verdicts or _beside(source)
        target = str(resolve_device(device))
        judged_by = GenEvalJudge(Detector.load(detector, device=target), ColorNames.load(clip, device=target))
        basis = {**judged_by.basis(), "device": target}
        with VerdictFile(path, basis) as file:
            result = evaluate_geneval(found, judged_by, file, on_image=_tell)
        content = result.to_json(judged_by, source=told, device=target)
        if as_json is not None:
            as_json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo("\n".join(_lines(result, content["notes"])))


def _images(source: str, which: Which | None) -> tuple[Iterator[AskedImage], Mapping[str, Any]]:
    """Return the images of a run or a folder, and what is to be known of them."""
    from ttsvar_ray.dataset import OutputLayout, read_manifest
    from ttsvar_ray.errors import ConfigurationError, OutputError
    from ttsvar_ray.evaluate.geneval import told_of_run
    from ttsvar_ray.evaluate.geneval_images import images_of_folder, images_of_run, prompt_folders

    layout = OutputLayout(source)
    manifest = read_manifest(layout)
    if manifest is not None:
        kept = which or Which.BEST
        run = {**told_of_run(manifest), "images": kept.value}
        return images_of_run(layout, manifest, best_only=kept is Which.BEST), run
    if not prompt_folders(Path(source)):
        raise OutputError(
            f"{source}: expected the output of a run, or a folder with 00000/metadata.jsonl and "
            "00000/samples/0000.png in it, found neither"
        )
    if which is not None:
        raise ConfigurationError(
            f"--images: {source} is no run, so that no image in it is the best; remove it"
        )
    return images_of_folder(Path(source)), {"folder": source}


def _beside(source: str) -> Path:
    """Return where verdicts go by default."""
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.storage import locate

    local = locate(source).local_path
    if local is None:
        raise ConfigurationError(f"--verdicts: expected a local file, since {source} is not local; name one")
    return local.with_name(f"{local.name}.geneval.jsonl")


def _tell(done: int) -> None:
    if done % _TELL_EVERY == 0:
        typer.echo(f"{done} images", err=True)


def _lines(result: GenEvalResult, notes: list[str]) -> list[str]:
    """Return the table: shares with their standard errors over prompts."""
    summary = result.summary
    lines = [f"{'tag':<15} {'images':>6} {'prompts':>7} {'correct':>8} {'+-':>7}"]
    lines += [
        f"{tag:<15} {one.images:>6} {one.prompts:>7} {one.score:>8.4f} {one.standard_error:>7.4f}"
        for tag, one in summary.tags.items()
    ]
    total = f"{summary.images:>6} {summary.prompts:>7} {summary.overall:>8.4f} {summary.standard_error:>7.4f}"
    lines.append(f"{'mean of tags':<15} {total}")
    any_correct = f"prompts with a correct image {summary.correct_prompts:.2%}"
    lines.append(f"correct images {summary.correct_images:.2%}, {any_correct}")
    return lines + [f"note: {note}" for note in notes]
