"""Benchmarks as scorers of a run's images: GenEval's verdict, and each category of T2I-CompBench by itself.

Named as NAME=FIRST:SECOND, two files or folders. The judges and rules are those of `ttsvar-ray evaluate`. A
category has a table of its own, in which images of other prompts have no score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ttsvar_ray.errors import ConfigurationError, InputError, noting
from ttsvar_ray.evaluate.compbench_objects import T2I_COMPBENCH_OBJECTS, ObjectJudge
from ttsvar_ray.evaluate.geneval import GenEvalJudge
from ttsvar_ray.evaluate.geneval_prompts import read_prompt
from ttsvar_ray.evaluate.judging import AskedImage
from ttsvar_ray.evaluate.question_judge import QuestionJudge
from ttsvar_ray.evaluate.questions import AnsweredImage, Benchmark, QuestionPrompt, questions_digest
from ttsvar_ray.evaluate.scorers import Images, Rows, Scorer, ScorerKind, ScorerSpec, Values
from ttsvar_ray.evaluate.t2i_compbench import T2I_COMPBENCH, T2I_COMPBENCH_CLIP, ClipJudge
from ttsvar_ray.models.weight_source import fingerprint_path
from ttsvar_ray.rewards.registry import REWARDS
from ttsvar_ray.vision.published import PublishedFiles

GENEVAL = "geneval"
FOLDERS = {
    GENEVAL: "DETECTOR:CLIP, the folders of the detector and of CLIP ViT-L/14",
    T2I_COMPBENCH.name: "QUESTIONS:JUDGE, the file of noun chunks and the folder of BLIP-VQA",
    T2I_COMPBENCH_CLIP.name: "PROMPTS:CLIP, the file of prompts and the folder of CLIP ViT-B/32",
    T2I_COMPBENCH_OBJECTS.name: "PROMPTS:DETECTOR, the file of prompts and the folder of the detector",
}
"""What stands behind each name."""

_CLIP = REWARDS["clip-score"].weights.files[0]
_DETECTOR = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
_DETECTOR_FILE = f"{_DETECTOR}_20220504_001756-743b7d99.pth"
_MASK2FORMER = PublishedFiles(
    f"https://download.openmmlab.com/mmdetection/v2.0/mask2former/{_DETECTOR}/{_DETECTOR_FILE}",
    (_DETECTOR_FILE,),
)
_WEIGHTS = {
    GENEVAL: (_MASK2FORMER, _CLIP),
    T2I_COMPBENCH.name: (
        None,
        PublishedFiles(
            "Salesforce/blip-vqa-capfilt-large", ("config.json", "model.safetensors", "vocab.txt")
        ),
    ),
    T2I_COMPBENCH_CLIP.name: (None, replace(_CLIP, source="openai/clip-vit-base-patch32")),
    T2I_COMPBENCH_OBJECTS.name: (None, _MASK2FORMER),
}
"""What the authors judge by, at its place behind each name."""


def _question_judge(folder: Path, *, device: str) -> QuestionJudge:
    return QuestionJudge(folder, T2I_COMPBENCH.asked, ("yes", "no"), device=device, dtype="float32")


_JUDGED: dict[str, tuple[Benchmark, Callable[..., Callable[[AskedImage], Mapping[str, Any]]]]] = {
    T2I_COMPBENCH.name: (T2I_COMPBENCH, _question_judge),
    T2I_COMPBENCH_CLIP.name: (T2I_COMPBENCH_CLIP, ClipJudge),
    T2I_COMPBENCH_OBJECTS.name: (T2I_COMPBENCH_OBJECTS, ObjectJudge.load),
}


def published_weights(given: str) -> list[tuple[PublishedFiles, Path]]:
    """Return the published weights of a benchmark as `benchmark_specs` takes it, each with its folder."""
    name, places = _split(given)
    return [(files, place) for files, place in zip(_WEIGHTS[name], places, strict=True) if files is not None]


def _split(given: str) -> tuple[str, tuple[Path, Path]]:
    name, _, folders = given.partition("=")
    first, _, second = folders.partition(":")
    if not first or not second:
        raise ConfigurationError(f"expected {name}={FOLDERS[name]}, got {given!r}")
    return name, (Path(first).expanduser(), Path(second).expanduser())


def benchmark_specs(
    given: str, texts: Callable[[], Collection[str]], *, device: str
) -> dict[str, ScorerSpec]:
    """Return what judges, by the name of its column: GenEval, or the categories that a run has prompts of.

    Args:
        given: NAME=FIRST:SECOND, NAME one of `FOLDERS`.
        texts: asked for the texts of the run's prompts.

    Raises:
        ConfigurationError: with every problem: files that are not said, weights that are not there, a file
            that holds no questions, or such about other prompts alone.
    """
    name, (first, second) = _split(given)
    problems = [
        f"{name}: expected {' and '.join(files.names)} in {place}, found {found}; `ttsvar-ray fetch` with "
        "the sweep brings them"
        for files, place in published_weights(given)
        if (found := _instead(files, place))
    ]
    asked: dict[str, list[QuestionPrompt]] = {}
    if name != GENEVAL:
        with noting(problems, InputError):
            asked = _asked(name, first, texts())
    if problems:
        raise ConfigurationError(problems)
    if name == GENEVAL:
        prints = {"detector": fingerprint_path(first), "clip": fingerprint_path(second)}
        return {
            name: ScorerSpec(
                kind=ScorerKind.GENEVAL,
                name=name,
                path=first,
                clip=second,
                device=device,
                fingerprints=prints,
            )
        }
    weights = fingerprint_path(second)
    return {
        f"{name} {group}": ScorerSpec(
            kind=ScorerKind.QUESTIONS,
            name=name,
            label=group,
            path=second,
            questions=first,
            device=device,
            fingerprints={"weights": weights, "questions": questions_digest(prompts)},
        )
        for group, prompts in sorted(asked.items())
    }


def _asked(name: str, file: Path, drawn: Collection[str]) -> dict[str, list[QuestionPrompt]]:
    """Return the prompts of a benchmark that a run has, by category."""
    asked: dict[str, list[QuestionPrompt]] = {}
    for prompt in _JUDGED[name][0].read(file):
        if prompt.text in drawn:
            asked.setdefault(prompt.group, []).append(prompt)
    if not asked:
        raise ConfigurationError(f"{name}: expected prompts of {file} among those of the job, found none")
    return asked


def _instead(files: PublishedFiles, folder: Path) -> str:
    """Return what is in a folder in place of a judge's weights, as its loader takes them; or ""."""
    if not folder.exists():
        return "nothing there"
    if files is _MASK2FORMER:
        is_there = (folder / "config.json").is_file() or len([*folder.glob("*.pth")]) == 1
        return "" if is_there else "neither one .pth nor config.json"
    # Weights may be in several files, and CLIP's tokenizer in one.
    other = {"model.safetensors": "*model*.[sb]*"} | dict.fromkeys(
        ("vocab.json", "merges.txt"), "tokenizer.json"
    )
    absent = [each for each in files.names if not {*folder.glob(each), *folder.glob(other.get(each, each))}]
    return f"no {' and no '.join(absent)}" if absent else ""


def build_benchmark(spec: ScorerSpec) -> Scorer:
    """Load the judge of a benchmark.

    Raises:
        CheckpointError: weights that cannot be used.
    """
    assert spec.path is not None
    if spec.kind is ScorerKind.QUESTIONS:
        return _CategoryScorer(spec)
    assert spec.clip is not None
    return _GenEvalScorer(GenEvalJudge.load(spec.path, spec.clip, device=spec.device), table=spec.table)


class _CategoryScorer:
    """The score of one category of a benchmark; none of an image of another prompt."""

    def __init__(self, spec: ScorerSpec) -> None:
        benchmark, load = _JUDGED[spec.name]
        assert spec.questions is not None
        self._asked = {one.text: one for one in benchmark.read(spec.questions) if one.group == spec.label}
        self._judge, self._summary = load(spec.path, device=spec.device), benchmark.summary
        self._table = spec.table
        self.columns = pa.schema([(self._table, pa.float32())])

    def score(self, images: Images, rows: Rows) -> Values:
        return {self._table: [self._score(row) for row in rows]}

    def _score(self, row: Mapping[str, Any]) -> float | None:
        prompt = self._asked.get(str(row["prompt"]))
        if prompt is None:
            return None
        key = f"image {row['image_rank']} of row {row['row']}"
        found = self._judge(AskedImage(key=key, encoded=row["image"]["bytes"], prompt=prompt))
        # Of one image the first line is its own score.
        answered = AnsweredImage(prompt=prompt, probabilities=found["probabilities"])
        return self._summary([answered])[0].mean


class _GenEvalScorer:
    def __init__(self, judged_by: GenEvalJudge, table: str) -> None:
        self._judge, self._table = judged_by, table
        self.columns = pa.schema([(table, pa.float32()), (f"{table}_tag", pa.string())])

    def score(self, images: Images, rows: Rows) -> Values:
        prompts = [read_prompt(_decoded(row), where=f"row {row['row']}") for row in rows]
        verdicts = [self._judge.judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return {
            self._table: [float(verdict.correct) for verdict in verdicts],
            f"{self._table}_tag": [prompt.tag for prompt in prompts],
        }


def _decoded(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row whose clauses are lists again, where the output holds them as JSON."""
    clauses = {name: row[name] for name in ("include", "exclude") if isinstance(row.get(name), str)}
    return {**row, **{name: json.loads(text) for name, text in clauses.items()}}
