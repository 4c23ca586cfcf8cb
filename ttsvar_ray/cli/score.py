"""`ttsvar-ray score` and `ttsvar-ray select`: other rewards over a run, and the data set of some images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.show import table_lines

if TYPE_CHECKING:
    from ttsvar_ray.config.job import JobConfig
    from ttsvar_ray.dataset.layout import OutputLayout
    from ttsvar_ray.evaluate.scorers import ScorerSpec
    from ttsvar_ray.types import Float32Array, Float64Array

_HASHES, _DUPLICATES, _SAFETY, _SIMILAR = "difference_hash", "near_duplicate", "safety", "similar"
_ALIKE = 0.95


def score(
    output: options.Output,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            help="A reward by name or as package.module:Name, with the folder of its weights where it reads "
            "any; may be repeated.",
            metavar="NAME[=DIR]",
        ),
    ] = None,
    safety: Annotated[
        Path | None,
        typer.Option(
            "--safety",
            help="Folder of a transformers image classifier; a tag, no row is dropped.",
            metavar="DIR",
        ),
    ] = None,
    unsafe: Annotated[
        str,
        typer.Option("--unsafe", help="Its class that is not safe; by default its last.", metavar="LABEL"),
    ] = "",
    near_duplicates: Annotated[
        int | None,
        typer.Option(
            "--near-duplicates",
            help="Also mark images whose perceptual hash has at most K of 64 bits other than one before.",
            min=0,
            max=16,
            metavar="K",
        ),
    ] = None,
    similar: Annotated[
        str | None,
        typer.Option(
            "--similar",
            help="Also mark images whose features are like those of one before; an extractor such as pool, "
            "with the folder of its network.",
            metavar="NAME[=DIR]",
        ),
    ] = None,
    similarity: Annotated[
        float, typer.Option("--similarity", help="Cosine of features that are alike.", min=0.0, max=1.0)
    ] = _ALIKE,
    device: options.Device = "auto",
    workers: options.Workers = None,
    address: options.Address = None,
) -> None:
    """Score a run's images by other rewards, into tables beside the data; the data stay as they are.

    Prints mean, standard error and quantiles over prompts, beside the reward that steered the search. The
    same command goes on after a stop. Exit codes: 0 done; 1 a part that cannot be scored; 2 no run, no such
    reward, or scores that rest on other weights; 75 workers that are lost again and again.

    Example: ttsvar-ray score outputs/mine --reward clip-score
    """
    from ttsvar_ray.config.load import recorded_config
    from ttsvar_ray.dataset.manifest import read_run
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.evaluate.near_duplicates import mark_near_duplicates, mark_similar, prompt_diversity
    from ttsvar_ray.evaluate.scorers import ScorerKind, ScorerSpec

    layout, manifest = read_run(output)
    if unsafe and safety is None:
        raise ConfigurationError(f"--unsafe: {unsafe!r} is a class of which model? Say it by --safety")
    if similar is None and similarity != _ALIKE:
        raise ConfigurationError(f"--similarity: {similarity} is read by --similar alone; add it")
    config = recorded_config(manifest.config)
    device = options.named_device(device, workers, address)
    specs = scorers_of(config, reward or (), device=device, safety=safety, unsafe=unsafe)
    if near_duplicates is not None:
        specs.append(ScorerSpec(kind=ScorerKind.HASH, name=_HASHES))
    if similar is not None:
        specs.append(_similar_spec(config, similar, device=device))
    if not specs:
        raise ConfigurationError(
            "expected --reward, --safety, --near-duplicates or --similar, got none of them"
        )
    run_scorers(layout, specs, workers=workers, address=address)
    lines = summary_lines(layout, specs)
    if near_duplicates is not None:
        found, total = mark_near_duplicates(layout, _HASHES, _DUPLICATES, bits=near_duplicates)
        lines.append(f"{found} of {total} images nearly repeat an earlier one (column near_duplicate_of)")
    if similar is not None:
        found, total, cosines = mark_similar(layout, specs[-1].table, _SIMILAR, least=similarity)
        lines += _similar_lines(found, total, cosines, *prompt_diversity(layout, specs[-1].table))
    typer.echo("\n".join(lines))


def _similar_spec(config: JobConfig, given: str, *, device: str) -> ScorerSpec:
    """Return what gives images the features of `--similar`.

    Args:
        config: of the run, whose model may bring the network.
        given: NAME or NAME=DIR.
    """
    from ttsvar_ray.errors import ConfigurationError, nearest
    from ttsvar_ray.evaluate.scorers import ScorerKind, ScorerSpec
    from ttsvar_ray.features.registry import EXTRACTORS, find_own_extractor
    from ttsvar_ray.job.resolved import model_choice
    from ttsvar_ray.models.registry import describe_model
    from ttsvar_ray.models.weight_source import fingerprint_path
    from ttsvar_ray.own_code import is_own

    name, _, folder = given.partition("=")
    path = Path(folder).expanduser() if folder else None
    prints = {}
    if is_own(name):
        prints["code"] = find_own_extractor(name, backbone=path).source_digest
    elif name not in EXTRACTORS:
        known = ", ".join(EXTRACTORS)
        raise ConfigurationError(
            f"--similar: expected one of {known}, got {name!r}{nearest(name, [*EXTRACTORS])}"
        )
    elif path is None:
        entry = EXTRACTORS[name]
        brought = describe_model(model_choice(config)).backbone_path
        path = brought if entry.takes_any_backbone else None
        if path is None:
            raise ConfigurationError(f"--similar: add {entry.expected}, as --similar {name}=DIR")
    if path is not None:
        prints["weights"] = fingerprint_path(path)
    return ScorerSpec(kind=ScorerKind.EMBEDDING, name=name, path=path, device=device, fingerprints=prints)


def _similar_lines(
    found: int, total: int, cosines: Float32Array, diversity: Float64Array, error: float
) -> list[str]:
    """Return how many images are like an earlier one, how near to those before, and how diverse."""
    import numpy as np

    lines = [f"{found} of {total} images have features like those of an earlier one (column similar_of)"]
    if total > 1:
        low, middle, high = np.quantile(cosines[1:], [0.05, 0.5, 0.95])
        lines.append(f"cosine with the nearest before: 5% {low:.3f}, 50% {middle:.3f}, 95% {high:.3f}")
    if count := len(diversity):
        lines.append(
            f"diversity within a prompt (1 - cosine, mean of all pairs): {diversity.mean():.4f} "
            f"+- {error:.4f}, {count} prompts of several images"
        )
    return lines


def scorers_of(
    config: JobConfig, rewards: Sequence[str], *, device: str, safety: Path | None = None, unsafe: str = ""
) -> list[ScorerSpec]:
    """Return the scorers that were asked for.

    Args:
        config: of the run, whose model may bring a reward.
        rewards: NAME or NAME=DIR each.

    Raises:
        ConfigurationError: with every problem.
    """
    from ttsvar_ray.config.load import recorded_config
    from ttsvar_ray.errors import ConfigurationError, noting
    from ttsvar_ray.evaluate.scorers import ScorerKind, ScorerSpec
    from ttsvar_ray.job.parts import resolve_rewards
    from ttsvar_ray.job.resolved import model_choice
    from ttsvar_ray.models.registry import describe_model
    from ttsvar_ray.models.weight_source import fingerprint_path

    description = describe_model(model_choice(config))
    problems: list[str] = []
    specs: list[ScorerSpec] = []
    for given in rewards:
        name, _, path = given.partition("=")
        with noting(problems):
            section = recorded_config({"reward": {"name": name, "path": path or None}}).reward
            (part,) = resolve_rewards(section, description)
            prints = {} if part.path is None else {"weights": fingerprint_path(part.path)}
            if part.source_digest is not None:
                prints["code"] = part.source_digest
            specs.append(
                ScorerSpec(
                    kind=ScorerKind.REWARD, name=part.name, path=part.path, device=device, fingerprints=prints
                )
            )
    if safety is not None:
        prints = {"weights": fingerprint_path(safety)} if safety.exists() else {}
        specs.append(
            ScorerSpec(
                kind=ScorerKind.SAFETY,
                name=_SAFETY,
                path=safety,
                device=device,
                label=unsafe,
                fingerprints=prints,
            )
        )
    names = [spec.table for spec in specs]
    problems += [
        f"--reward: {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if problems:
        raise ConfigurationError(problems)
    return specs


def run_scorers(
    layout: OutputLayout, specs: list[ScorerSpec], *, workers: int | None, address: str | None
) -> None:
    """Score what has no scores yet, here or on Ray.

    Raises:
        OutputError: scores that rest on something else, or a damaged part.
        PieceError: a part that cannot be scored.
        RunFailedError: a part whose workers are lost.
    """
    from ttsvar_ray.evaluate.score_table import PartScorer, missing_parts

    work = [(spec, chunk) for spec in specs for chunk in missing_parts(layout, spec.table, spec.basis)]
    local = layout.root.local_path
    build = partial(PartScorer, layout.root.uri if local is None else str(local.resolve()))
    done: Iterator[object]
    if workers is not None and work:
        from ttsvar_ray.cluster.sharing import share_on_ray

        done = share_on_ray(
            work,
            build,
            name_of=lambda piece: f"{piece[0].name}: part {piece[1]}",
            address=address,
            workers=workers,
            gpus=float(any(spec.device.startswith("cuda") for spec in specs)),
            run_name="ttsvar-ray score",
        )
    else:
        done = map(build(), work)
    for count, _ in enumerate(done, start=1):
        if len(work) > 1:
            typer.echo(f"{count} of {len(work)} parts", err=True)


def summary_lines(layout: OutputLayout, specs: list[ScorerSpec]) -> list[str]:
    """Return mean, standard error and quantiles over prompts of each score of the best images."""
    import numpy as np

    from ttsvar_ray.evaluate.scorers import ScorerKind

    no_scores = (ScorerKind.HASH, ScorerKind.EMBEDDING)
    shown = shown_scores(layout, [spec.table for spec in specs if spec.kind not in no_scores])
    rows: list[list[str]] = []
    for name, values, error in shown:
        good = values[np.isfinite(values)]
        lost = f"{len(values) - len(good)} not finite" if len(good) < len(values) else ""
        if not len(good):
            rows.append([name, "0", *[""] * 5, "no finite score"])
            continue
        numbers = (good.mean(), error, *np.quantile(good, [0.05, 0.5, 0.95]))
        rows.append([name, str(len(good)), *(f"{number:.4f}" for number in numbers), lost])
    return table_lines(("best image of each prompt", "prompts", "mean", "+-", "5%", "50%", "95%", ""), rows)


def shown_scores(layout: OutputLayout, tables: Sequence[str]) -> list[tuple[str, Float64Array, float]]:
    """Return scores of the best image of each prompt: the reward that steered, then those of tables.

    The last number is the standard error of the finite ones; prompts that say the same enter it as one.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from ttsvar_ray.dataset.contents import read_columns
    from ttsvar_ray.errors import OutputError
    from ttsvar_ray.evaluate.comparison import grouped_mean, text_numbers
    from ttsvar_ray.evaluate.score_table import read_scores

    rows = read_columns(layout, ["row", "image_rank", "reward", "reward_name", "prompt"])
    found = {f"reward ({', '.join(sorted(set(rows['reward_name'].to_pylist())))}, steered)": rows["reward"]}
    for table in tables:
        scores = pa.concat_tables(read_scores(layout, table, chunk) for chunk in layout.data_parts())
        if any(not scores[key].equals(rows[key]) for key in ("row", "image_rank")):
            raise OutputError(f"{layout.root}: the scores {table} are of other images; score them again")
        found[table] = scores[table]
    is_best = pc.equal(rows["image_rank"], 0)
    texts = text_numbers(rows["prompt"].filter(is_best).to_pylist())
    shown = []
    for name, column in found.items():
        values = column.filter(is_best).to_numpy().astype(np.float64)
        good = np.isfinite(values)
        error = grouped_mean(values[good], texts=texts[good]).standard_error if good.any() else np.nan
        shown.append((name, values, error))
    return shown


def select(
    output: options.Output,
    to: options.To,
    where: Annotated[
        str,
        typer.Option(
            "--where",
            help='Over columns and scores: \'reward > 0.5 and contains(prompt, "red") and near_duplicate_of '
            "is None'.",
            metavar="EXPRESSION",
        ),
    ] = "",
    best_per_prompt: Annotated[
        bool, typer.Option("--best-per-prompt", help="At most one image of each prompt.")
    ] = False,
    by: Annotated[
        str, typer.Option("--by", help="Column whose highest value is the best.", metavar="COLUMN")
    ] = "reward",
) -> None:
    """Write some images of a run, with their columns and scores, as a data set of its own.

    The same command goes on after a stop. Exit codes: 0 done; 2 no run, an expression that cannot be used or
    takes no image, or a folder that holds something else.

    Example: ttsvar-ray select outputs/mine --to best --where "reward > 1.5"
    """
    from ttsvar_ray.dataset.manifest import read_run
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.evaluate.filters import Selection
    from ttsvar_ray.evaluate.filters import select as write

    layout, manifest = read_run(output)
    if not where and not best_per_prompt:
        raise ConfigurationError("expected --where or --best-per-prompt, got neither: nothing is selected")
    if by != "reward" and not best_per_prompt:
        raise ConfigurationError(f"--by: {by!r} is read by --best-per-prompt alone; add it")
    wanted = Selection(where=where, best_per_prompt=best_per_prompt, by=by)
    options.folder_to_write(to, "--to")
    images, prompts, total = write(layout, manifest, wanted, to)
    typer.echo(f"{to}: {images} of {total} images, of {prompts} prompts")
