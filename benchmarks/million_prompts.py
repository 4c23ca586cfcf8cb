"""Memory of a run over very many prompts, without drawing any: does it grow with the prompt set?

    prompt file -> scan -> LeaseLedger -> outcomes out of nothing -> write_chunk -> summary, then a resume

Everything a driver and its sink do, in one process for each size, so that the peaks are comparable.

    python -m benchmarks.million_prompts                      # 10,000, 100,000 and 1,000,000 prompts
    python -m benchmarks.million_prompts --prompts 10000000   # as many as you have time for
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ttsvar_ray.config.load import load_config
from ttsvar_ray.dataset.contents import committed_chunks, failed_rows, summarise_output
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import OutputLock
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.leasing.ledger import LeaseLedger
from ttsvar_ray.prompts import PromptSource, read_prompts, scan_prompts
from ttsvar_ray.results import FinalImage, PromptFailure, PromptResult, ResultImage
from ttsvar_ray.types import Prompt

SIZES = (10_000, 100_000, 1_000_000)
ROWS_PER_PART = 256
OUT_AT_A_TIME = 512
FAILS_EVERY = 1_000
REPEATS_EVERY = 4
"""Each fourth prompt repeats the one before it: as many ordinals to keep as a prompt set could have."""

_IMAGE = FinalImage.of_bytes(b"\x89PNG", width=1, height=1, image_format="png")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What one size took.

    Attributes:
        prompts, parts: how many there were.
        start_mb: resident memory before the first prompt, mostly libraries.
        peak_mb: largest resident memory of the process.
        scan_s, run_s, resume_s: wall time of the scan; of leasing, writing and the summary; of opening the
            finished output once more.
    """

    prompts: int
    parts: int
    start_mb: float
    peak_mb: float
    scan_s: float
    run_s: float
    resume_s: float


def write_prompts(path: Path, count: int) -> None:
    """Write a JSON lines file of `count` prompts with a column of the caller's."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            number = row - 1 if row % REPEATS_EVERY == REPEATS_EVERY - 1 else row
            file.write(json.dumps({"prompt": f"a photo of bench number {number} at dawn", "tag": row}) + "\n")


def pass_through(prompts_file: Path, output: Path) -> tuple[int, float, float, float]:
    """Take a prompt file through reader, ledger and writer.

    Returns:
        Parts written, and the seconds of scan, run and resume.
    """
    started = time.monotonic()
    source = PromptSource(path=str(prompts_file))
    scan = scan_prompts(source, rows_per_chunk=ROWS_PER_PART)
    scanned = time.monotonic()
    config = load_config(None, [f"output.rows_per_part={ROWS_PER_PART}"], needs_files=False)
    manifest = RunManifest(
        config=config.resolved(),
        content=config.content(),
        config_digest=config.digest(),
        prompts_path=source.name,
        prompts_digest=scan.digest,
        prompt_count=scan.count,
        bad_lines=scan.bad_lines,
        rows_per_chunk=scan.rows_per_chunk,
        chunk_digests=scan.chunk_digests,
        column_types={name: str(kind) for name, kind in scan.column_types.items()},
        seed=config.seed,
    )
    context = RowContext(
        model="none",
        strategy="none",
        seed=config.seed,
        reward_name="none",
        carried=carried_columns(scan.column_types),
    )
    layout = OutputLayout(output)
    with OutputLock(layout):
        open_output(layout, manifest)
        ledger = LeaseLedger(
            read_prompts(source, scan=scan),
            prompt_count=scan.count,
            rows_per_chunk=ROWS_PER_PART,
            committed=committed_chunks(layout),
        )
        while not ledger.is_done:
            for outcome in _outcomes(ledger.lease("cell", OUT_AT_A_TIME, now=0.0).prompts):
                whole = ledger.add("cell", outcome).whole
                if whole is not None:
                    write_chunk(
                        layout,
                        whole.chunk_index,
                        rows=whole.rows,
                        finished=whole.finished,
                        failed=whole.failed,
                        context=context,
                    )
                    ledger.commit(whole.chunk_index)
        summary = summarise_output(layout)
        finished = time.monotonic()
        assert summary.prompts + summary.failed == scan.count
    with OutputLock(layout):
        open_output(layout, manifest)
        committed = committed_chunks(layout)
        given_up = failed_rows(layout, committed)
        assert sum(map(len, given_up.values())) == summary.failed
        again = LeaseLedger(
            read_prompts(source, scan=scan),
            prompt_count=scan.count,
            rows_per_chunk=ROWS_PER_PART,
            committed=committed,
        )
        assert again.is_done
    return summary.chunks, scanned - started, finished - scanned, time.monotonic() - finished


def _outcomes(prompts: tuple[Prompt, ...]) -> Iterator[PromptResult | PromptFailure]:
    for prompt in prompts:
        if prompt.row % FAILS_EVERY == FAILS_EVERY - 1:
            yield PromptFailure(prompt=prompt, attempts=3, errors=("none",))
            continue
        kept = ResultImage(
            rank=0, image=_IMAGE, reward=0.5, reward_history=(0.5,), lineage=(0,), bits=(), member_rewards=()
        )
        yield PromptResult(prompt=prompt, images=(kept,), trace=(), attempts=1, seconds=0.0)


def measure(count: int) -> Passage:
    """Run one size in this process."""
    with tempfile.TemporaryDirectory(prefix="ttsvar-million-") as folder:
        prompts_file = Path(folder) / "prompts.jsonl"
        write_prompts(prompts_file, count)
        start = _peak_mb()
        parts, scan_s, run_s, resume_s = pass_through(prompts_file, Path(folder) / "out")
    return Passage(
        prompts=count,
        parts=parts,
        start_mb=start,
        peak_mb=_peak_mb(),
        scan_s=round(scan_s, 1),
        run_s=round(run_s, 1),
        resume_s=round(resume_s, 1),
    )


def _peak_mb() -> float:
    # Linux counts in KiB.
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    """Print one JSON object: a passage for each size, each from a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="*", default=SIZES, help="sizes of prompt sets")
    parser.add_argument("--here", action="store_true", help="one size, in this process")
    given = parser.parse_args()
    if given.here:
        (count,) = given.prompts
        passage = measure(count)
        print(json.dumps({name: getattr(passage, name) for name in Passage.__slots__}))
        return
    passages = []
    for count in given.prompts:
        command = [sys.executable, "-m", "benchmarks.million_prompts", "--here", "--prompts", str(count)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        passages.append(json.loads(answer.stdout))
    print(json.dumps({"rows_per_part": ROWS_PER_PART, "passages": passages}, indent=2))


if __name__ == "__main__":
    main()
