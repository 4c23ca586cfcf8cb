"""Files that people and accidents have changed: `python -m tests.fuzz --count 10000`.

Each case takes a good file (prompts in every format, a job file, run.json, dead letters, manifests,
sessions, a part, a workload; of a model config.json, weights, and its text encoder with its tokenizer),
changes it at random, and hands it to what reads it. That may take it, or say in a sentence what is wrong
(`TtsVarError`). Anything else is a finding, as is a case that takes over five seconds; the whole may not
hold a gigabyte. A case is a number: `--first 4711 --count 1` plays it again.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save
from transformers import AutoTokenizer, T5EncoderModel  # noqa: F401 - not in the seconds of a case

from tests.support.manifests import manifest
from ttsvar_ray.config.load import load_config
from ttsvar_ray.dataset.contents import committed_chunks, failed_rows, summarise_output
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import read_manifest
from ttsvar_ray.dataset.output import check_output, open_output
from ttsvar_ray.dataset.part_manifest import settle
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.sessions import SessionLog
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import TtsVarError, reading_weights
from ttsvar_ray.job.workload import read_workload
from ttsvar_ray.models.infinity.text import T5TextEncoder
from ttsvar_ray.models.registry import BUILT_IN, describe_model, model_path
from ttsvar_ray.models.weight_files import read_weights
from ttsvar_ray.prompts import PromptSource, bad_lines, read_prompts, scan_prompts
from ttsvar_ray.report.check import check_folder
from ttsvar_ray.results import FinalImage, PromptFailure, PromptResult, ResultImage
from ttsvar_ray.types import Prompt

SLOW_SECONDS = 5.0
MOST_BYTES = 1_000_000_000
ROOT = Path(__file__).parents[1]

_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff56c72f0d0000000049454e44ae426082"
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**19), 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", " ", "0", "\0", "\ud800", "x" * 5000, "../../etc/passwd", "\x1b[31m"),
    *([], {}, [[]], [None], {"": None}, {"row": 1}, ["a"] * 100, "s3://KEY:SECRET@bucket/x", "2020-99-99"),
)
_TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
    ),
    *(b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"- " * 500),
    *(
        b"&a [*a]",
        b"*a",
        b"!!python/object:os.system",
        b"? [a]\n: b",
        b"2020-99-99",
        b"PAR1",
        b"\x1f\x8b\x08",
        b"\t",
    ),
)


class HangError(BaseException):
    """A case takes too long."""


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of file.

    Attributes:
        name: of the kind.
        file: inside a fresh copy of the good folder.
        read: what reads it, given the folder.
    """

    name: str
    file: str
    read: Callable[[Path], object]


def _prompts(file: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        source = PromptSource(path=str(folder / file))
        scan = scan_prompts(source, rows_per_chunk=3)
        return [*read_prompts(source, scan=scan), *bad_lines(source)]

    return read


GOOD = manifest("output.bits=false", "prompts.id_column=id", prompt_count=4, rows_per_chunk=2)
"""Of the run that is written."""


def _run(folder: Path) -> object:
    """Do what a session and a check do with an output that is there."""
    layout = OutputLayout(folder / "out")
    present = read_manifest(layout)
    if present is not None:
        with contextlib.suppress(TtsVarError):
            check_output(layout, replace(GOOD, seed=1, config_digest="other"))
        with contextlib.suppress(TtsVarError):
            check_folder(layout)
    open_output(layout, GOOD)
    SessionLog(layout, versions={}).add_device("CPU")
    for chunk in committed_chunks(layout):
        settle(layout, chunk)
    failed_rows(layout, committed_chunks(layout))
    return summarise_output(layout, {0: range(2), 1: range(2, 4)})


def _weights(folder: Path) -> object:
    file = folder / "weights.safetensors"
    with reading_weights(file):
        return {name: tensor.sum().item() for name, tensor in read_weights(file).items()}


def _text_encoder(folder: Path) -> object:
    with reading_weights(folder / "text"):
        encoder = T5TextEncoder.load(
            folder / "text", max_length=8, device=torch.device("cpu"), dtype=torch.float32
        )
        return encoder.encode(["a red circle"])


TEXT_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

TARGETS = (
    *(Target(name, name, _prompts(name)) for name in ("p.txt", "p.jsonl", "p.json", "p.csv", "p.tsv")),
    *(Target(name, name, _prompts(name)) for name in ("p.jsonl.gz", "p.parquet")),
    Target("job", "job.yaml", lambda folder: load_config(folder / "job.yaml", needs_files=False).content()),
    Target("run", "out/run.json", _run),
    Target("letters", "out/failed/part-00001.jsonl", _run),
    Target("part manifest", "out/manifest/part-00000.json", _run),
    Target("sessions", "out/sessions.jsonl", _run),
    Target("part", "out/data/part-00000.parquet", _run),
    Target("trace", "out/trace/part-00000.parquet", _run),
    Target("workload", "workload.json", lambda folder: read_workload(folder / "workload.json")),
    Target("weights", "weights.safetensors", _weights),
    *(Target(f"text encoder's {name}", f"text/{name}", _text_encoder) for name in TEXT_FILES),
    Target("model", "model/config.json", lambda folder: describe_model(str(folder / "model"))),
)


def write_good(folder: Path) -> None:
    """Write one good file of each kind."""
    texts = ["a red circle", "zwei Würfel", "a red circle", "x, y", 'say "no"', "", "  tab\tin"]
    rows = [{"prompt": text, "tag": number, "n": {"a": [1, None]}} for number, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "p.txt").write_text("\n".join(texts) + "\n\n")
    (folder / "p.jsonl").write_text(lines)
    (folder / "p.json").write_text(json.dumps(rows))
    quoted = ["prompt", *('"' + text.replace('"', '""') + '"' for text in texts)]
    (folder / "p.csv").write_text("".join(f"{text},{number}\n" for number, text in enumerate(quoted)))
    (folder / "p.tsv").write_text("".join(f"{text}\t{number}\n" for number, text in enumerate(quoted)))
    (folder / "p.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")
    shutil.copy(next(iter(sorted((ROOT / "jobs").glob("*.yaml")))), folder / "job.yaml")
    segment = {"tokens": 4, "batch_seconds": 0.1, "row_seconds": 0.1, "replay_seconds": 0.0}
    workload = {"format_version": 1, "kind": "ttsvar-ray-workload", "source": "x", "segments": [segment]}
    (folder / "workload.json").write_text(json.dumps(workload))
    tensors = {"a.weight": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float16)}
    (folder / "weights.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    shutil.copytree(model_path(BUILT_IN) / "text_encoder", folder / "text")
    (folder / "model").mkdir()
    built_in = next(iter(sorted((ROOT / "ttsvar_ray").rglob("config.json"))))
    shutil.copy(built_in, folder / "model" / "config.json")
    layout = OutputLayout(folder / "out")
    open_output(layout, GOOD)
    SessionLog(layout, versions={"python": "3"}).add_device("CPU")
    context = RowContext(model="m", strategy="raw", seed=0, reward_name="none")
    for chunk, given_up in ((0, ()), (1, (3,))):
        chunk_rows = range(2 * chunk, 2 * chunk + 2)
        write_chunk(
            layout,
            chunk,
            rows=chunk_rows,
            finished=[_done(row) for row in chunk_rows if row not in given_up],
            failed=[PromptFailure(prompt=_prompt(row), attempts=1, errors=("no",)) for row in given_up],
            context=context,
        )


def _prompt(row: int) -> Prompt:
    return Prompt(row=row, prompt_id=f"p{row}", ordinal=0, text=f"number {row}")


def _done(row: int) -> PromptResult:
    image = FinalImage.of_bytes(_PIXEL, width=1, height=1, image_format="png")
    kept = ResultImage(rank=0, image=image, reward=0.5, reward_history=(), lineage=(0,), bits=())
    return PromptResult(prompt=_prompt(row), images=(kept,), trace=(), attempts=1, seconds=0.1)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Change a file: its bytes, or, where it is JSON, its values."""
    if draw.random() < 0.5:
        with contextlib.suppress(ValueError):
            lines = content.decode().splitlines() if b"\n" in content.strip() else [content.decode()]
            whole = draw.randrange(len(lines))
            try:
                lines[whole] = json.dumps(_changed(json.loads(lines[whole]), draw))
            except ValueError:
                lines = [json.dumps(_changed(json.loads(content), draw))]
            return ("\n".join(lines) + "\n").encode()
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(len(data) + 1)
        length = draw.choice((1, 4, 40, 400))
        match draw.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = draw.choice(_TOKENS)
            case 3:
                data[at:at] = data[at : at + length] * draw.choice((1, 3, 50))
            case 4:
                data[at : at + length] = draw.randbytes(length)
            case _ if draw.random() < 0.2:
                del data[at:]
    return bytes(data)


def _changed(value: Any, draw: random.Random) -> Any:
    """Return JSON with one value inside it replaced, left out, doubled or put deeper."""
    if draw.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
        if draw.random() < 0.1:
            for _ in range(draw.choice((10, 900))):
                value = [value]
            return value
        return draw.choice(_VALUES)
    if isinstance(value, list):
        at = draw.randrange(len(value))
        inner = [] if draw.random() < 0.1 else [_changed(value[at], draw)] * draw.choice((1, 1, 2))
        return [*value[:at], *inner, *value[at + 1 :]]
    name = draw.choice(list(value))
    changed = dict(value)
    match draw.randrange(8):
        case 0:
            del changed[name]
        case 1:
            changed[draw.choice(("", "x", "row", "\u202e", name + "_"))] = changed.pop(name)
        case _:
            changed[name] = _changed(changed[name], draw)
    return changed


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def play(first: int, count: int, *, seconds: float = SLOW_SECONDS) -> tuple[dict[int, str], Counter[str]]:
    """Play cases; return the findings by number, and how many were taken and refused."""
    findings: dict[int, str] = {}
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ttsvar-fuzz-") as place:
        good, folder = Path(place) / "good", Path(place) / "case"
        good.mkdir()
        write_good(good)
        for case in range(first, first + count):
            draw = random.Random(case)
            target = draw.choice(TARGETS)
            shutil.copytree(good, folder)
            file = folder / target.file
            file.write_bytes(mutate(file.read_bytes(), draw))
            try:
                with _limited(seconds):
                    target.read(folder)
                ends["taken"] += 1
            except TtsVarError as error:
                ends["refused"] += 1
                if not str(error).strip() or len(str(error)) > 20_000:
                    findings[case] = f"{target.name}: a message of {len(str(error))} characters"
            except HangError:
                findings[case] = f"{target.name}: over {seconds:g} s"
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                where = traceback.extract_tb(error.__traceback__)[-1]
                findings[case] = (
                    f"{target.name}: {type(error).__name__}: {str(error)[:200]} "
                    f"({where.filename}:{where.lineno})"
                )
            shutil.rmtree(folder)
    return findings, ends


def main() -> int:
    """Play cases and print what they found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--count", type=int, default=10_000)
    given = options.parse_args()
    started = time.monotonic()
    findings, ends = play(given.first, given.count)
    for case, what in findings.items():
        print(f"case {case}: {what}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{given.count} cases in {time.monotonic() - started:.0f} s: {ends['taken']} taken, "
        f"{ends['refused']} refused, {len(findings)} findings; at most {peak / 1e6:.0f} MB"
    )
    return 1 if findings or peak > MOST_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
