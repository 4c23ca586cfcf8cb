"""What the sink writes survives its death at any step, whatever was there before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.support.prompts import make_prompts
from ttsvar_ray.cluster.parts import LostImages, Sink
from ttsvar_ray.dataset.contents import failed_rows, rows_in, summarise_output
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import OutputLock
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import ChunkReport
from ttsvar_ray.errors import LostLockError
from ttsvar_ray.leasing.ledger import WholeChunk
from ttsvar_ray.results import FinalImage, PromptFailure, PromptResult, ResultImage
from ttsvar_ray.storage import location

PROMPTS = make_prompts(3)
CONTEXT = RowContext(model="tiny", strategy="none", seed=1, reward_name="none")


def done(row: int) -> PromptResult:
    image = FinalImage.of_bytes(b"\x89PNG", width=1, height=1, image_format="png")
    kept = ResultImage(
        rank=0, image=image, reward=0.5, reward_history=(), lineage=(0,), bits=(), member_rewards=()
    )
    return PromptResult(prompt=PROMPTS[row], images=(kept,), trace=(), attempts=1, seconds=0.1)


def lost(row: int) -> PromptFailure:
    return PromptFailure(prompt=PROMPTS[row], attempts=1, errors=("no",))


def write(
    layout: OutputLayout, *outcomes: PromptResult | PromptFailure, lock_token: str | None = None
) -> ChunkReport | LostImages:
    chunk = WholeChunk(
        chunk_index=0,
        rows=range(len(PROMPTS)),
        finished=tuple(each for each in outcomes if isinstance(each, PromptResult)),
        failed=tuple(each for each in outcomes if isinstance(each, PromptFailure)),
    )
    return Sink(str(layout.root), lock_token).write(chunk, CONTEXT)


@contextlib.contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the process die before it renames or deletes its `step`-th file."""
    left = step

    def dying(change: Callable[..., None]) -> Callable[..., None]:
        def one_step(*given: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            change(*given)

        return one_step

    with monkeypatch.context() as patch:
        for name in ("_rename", "_remove"):
            patch.setattr(location, name, dying(getattr(location, name)))
        yield


@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize("again", [(done(0), done(1), done(2)), (done(0), lost(1), done(2))])
def test_a_chunk_that_failed_as_a_whole_is_retried_without_losing_a_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    again: tuple[PromptResult | PromptFailure, ...],
) -> None:
    plain, layout = OutputLayout(tmp_path / "plain"), OutputLayout(tmp_path / "out")
    write(plain, done(0), done(1), done(2))
    write(layout, lost(0), lost(1), lost(2))
    with pytest.raises(KeyboardInterrupt), killed_at(step, monkeypatch):
        write(layout, *again)
    left = failed_rows(layout, {0}).get(0, ())
    summary = summarise_output(layout, {0: range(3)})
    assert summary.prompts + len(left) == len(PROMPTS)
    if left:
        write(layout, *(done(row) for row in left))
    assert layout.data_part(0).read_bytes() == plain.data_part(0).read_bytes()
    assert layout.trace_part(0).read_bytes() == plain.trace_part(0).read_bytes()
    assert not layout.failed_part(0).is_file()


def test_the_sink_of_a_run_that_lost_its_lock_undoes_nothing(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    with OutputLock(layout, heartbeat_s=1e6) as first:
        write(layout, done(0), lost(1), lost(2), lock_token=first.token)
        layout.lock_file.delete()
        with OutputLock(layout) as second:
            write(layout, done(1), lost(2), lock_token=second.token)
            with pytest.raises(LostLockError, match="another run took this output folder over"):
                write(layout, lost(1), done(2), lock_token=first.token)
            assert rows_in(layout.data_part(0)) == {0, 1}
            assert failed_rows(second.layout, {0}) == {0: (2,)}
            write(layout, done(2), lock_token=second.token)
    assert summarise_output(layout, {0: range(3)}).prompts == len(PROMPTS)


def test_images_that_do_not_arrive_are_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = OutputLayout(tmp_path)
    outcomes = [done(row) for row in range(3)]
    for row in (0, 2):
        image = replace(outcomes[row].images[0].image, payload=ray.ObjectRef.from_random())
        outcomes[row] = replace(outcomes[row], images=(replace(outcomes[row].images[0], image=image),))
    waits: list[float] = []

    def wait(refs: list[Any], *, num_returns: int, timeout: float, **_: Any) -> tuple[list[Any], list[Any]]:
        waits.append(timeout)
        return refs[:1], refs[1:]

    monkeypatch.setattr(ray, "wait", wait)
    assert write(layout, *outcomes) == LostImages(chunk_index=0, rows=(2,), reason="they did not arrive")
    assert waits == [120.0]
    assert layout.data_parts() == {}


def test_an_image_that_changed_on_its_way_is_generated_again(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    outcomes = [done(row) for row in range(3)]
    image = replace(outcomes[1].images[0].image, payload=b"\x89PNg")
    outcomes[1] = replace(outcomes[1], images=(replace(outcomes[1].images[0], image=image),))
    lost = write(layout, *outcomes)
    assert isinstance(lost, LostImages)
    assert lost.rows == (1,)
    assert "its bytes changed between its worker and here" in lost.reason
    assert layout.data_parts() == {}
