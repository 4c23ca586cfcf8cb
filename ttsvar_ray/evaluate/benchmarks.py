"""Every benchmark of questions by its name, its images from a run or a folder, and its result.

To add one: a file with its `Benchmark`, an entry here, a line in the table of docs/evaluate.md.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ttsvar_ray.dataset.export import exported_images
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, installed_versions
from ttsvar_ray.errors import InputError, OutputError, brief
from ttsvar_ray.evaluate.dpg_bench import DPG_BENCH
from ttsvar_ray.evaluate.geneval2 import GENEVAL_2
from ttsvar_ray.evaluate.judging import AskedImage, JudgedImage
from ttsvar_ray.evaluate.oneig import ONEIG
from ttsvar_ray.evaluate.questions import (
    AnsweredImage,
    Benchmark,
    QuestionPrompt,
    Score,
    questions_digest,
    read_lines,
)
from ttsvar_ray.evaluate.t2i_compbench import T2I_COMPBENCH

BENCHMARKS = {one.name: one for one in (GENEVAL_2, DPG_BENCH, ONEIG, T2I_COMPBENCH)}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(slots=True)
class QuestionImages:
    """The images of a run or a folder, each with what is asked of it.

    Attributes:
        prompts: its prompts, by name and by text.
        passed_over: images of other prompts, so far.
    """

    benchmark: Benchmark
    prompts: Mapping[str, QuestionPrompt]
    passed_over: int = field(default=0, init=False)

    @classmethod
    def of(cls, benchmark: Benchmark, questions: Path) -> QuestionImages:
        """Read the questions.

        Raises:
            InputError: a file that is none of the benchmark's, or that asks nothing.
        """
        prompts = benchmark.read(questions)
        if not prompts:
            raise InputError(f"{questions}: expected the questions of {benchmark.title}, found none")
        texts = {prompt.text: prompt for prompt in prompts if prompt.text}
        return cls(benchmark, {**texts, **{prompt.name: prompt for prompt in prompts}})

    def of_run(self, layout: OutputLayout, manifest: RunManifest, *, best_only: bool) -> Iterator[AskedImage]:
        """Yield a run's images, whose prompts are found by their text, or by the benchmark's own columns."""
        name_of = self.benchmark.name_of_row
        for image in exported_images(layout, manifest.column_types, best_only=best_only):
            name = str(image.metadata["prompt"]) if name_of is None else name_of(image.metadata)
            yield from self._asked(name, image.key, image.encoded)

    def of_folder(self, folder: Path, grid: int) -> Iterator[AskedImage]:
        """Yield the images of a folder with a `metadata.jsonl`, or whose files the benchmark names.

        Args:
            folder: with images below it.
            grid: of files that are named as the benchmark does: images beside, and below, each other.

        Raises:
            InputError: metadata that are no such lines, or two files of one name.
            OutputError: a file that is no image.
        """
        if (folder / "metadata.jsonl").is_file():
            for name, file in _told_files(folder / "metadata.jsonl"):
                yield from self._asked(name, file.relative_to(folder).as_posix(), _bytes(file))
            return
        files: dict[str, list[Path]] = {}
        for file in sorted(one for one in folder.rglob("*") if one.suffix.lower() in PICTURES):
            files.setdefault(self.benchmark.name_of_file(file.relative_to(folder)), []).append(file)
        for name, own in files.items():
            has_one = self.benchmark.images == self.benchmark.grid**2
            if has_one and name in self.prompts and len(own) > 1:
                raise InputError(f"{folder}: expected one file of {name}, found {own[0]} and {own[1]}")
        for name, own in files.items():
            for file in own:
                key = file.relative_to(folder).as_posix()
                for number, tile in _tiles(_bytes(file), grid, file, self.benchmark.has_black_cells):
                    yield from self._asked(name, f"{key}#{number}" if grid > 1 else key, tile)

    def _asked(self, name: str, key: str, encoded: bytes) -> Iterator[AskedImage]:
        if name in self.prompts:
            yield AskedImage(key=key, encoded=encoded, prompt=self.prompts[name])
        else:
            self.passed_over += 1

    def result(self, judged: Sequence[JudgedImage], label: str) -> tuple[list[Score], list[str]]:
        """Return the summary, and why it is not one of the published kind."""
        answered = [
            AnsweredImage(prompt=one.prompt, probabilities=one.found["probabilities"]) for one in judged
        ]
        own, count = self.benchmark, Counter(one.prompt.name for one in judged)
        notes = [f"judged by {label}", *own.notes]
        if len(count) != own.prompts:
            notes.append(f"{len(count)} of the benchmark's {own.prompts} prompts")
        if (fewest := min(count.values()), most := max(count.values())) != (own.images, own.images):
            number = str(most) if fewest == most else f"{fewest} to {most}"
            notes.append(f"{number} images a prompt, where published scores have {own.images}")
        if self.passed_over:
            notes.append(f"{self.passed_over} images passed over, of prompts of which nothing is asked")
        return own.summary(answered), notes

    def to_json(
        self, judged: Sequence[JudgedImage], basis: Mapping[str, Any], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return everything to keep of an evaluation, as JSON has it.

        Args:
            judged: all of them.
            basis: what answers rest on.
            source: which images, see `told_of_run`.
        """
        scores, notes = self.result(judged, basis["judge"]["label"])
        asked = {one.prompt.name: one.prompt for one in judged}
        return {
            **basis,
            "images": len(judged),
            "scores": [asdict(score) for score in scores],
            "notes": notes,
            "prompts_digest": questions_digest(asked.values()),
            "source": dict(source),
            "versions": installed_versions(),
        }


def _told_files(file: Path) -> list[tuple[str, Path]]:
    """Return prompts and their files, as `export --layout folder` and `datasets` write them."""

    def told(number: int, line: str) -> tuple[str, Path]:
        content = json.loads(line)
        return str(content["prompt"]), file.parent / str(content["file_name"])

    return read_lines(file, told, expected="file_name and prompt")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OutputError(f"{file}: not an image that can be read ({brief(error)})") from None


def _tiles(encoded: bytes, grid: int, file: Path, has_black_cells: bool) -> Iterator[tuple[int, bytes]]:
    """Yield the images of a picture of grid x grid with their numbers, row by row, without loss."""
    if grid == 1:
        yield 0, encoded
        return
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise OutputError(f"{file}: not an image that can be read ({brief(error)})") from None
    width, height = picture.width // grid, picture.height // grid
    for row in range(grid):
        for column in range(grid):
            place = (column * width, row * height, (column + 1) * width, (row + 1) * height)
            cell, tile = picture.crop(place), io.BytesIO()
            if has_black_cells and cell.getbbox() is None:
                continue
            cell.save(tile, format="PNG", compress_level=1)
            yield row * grid + column, tile.getvalue()
