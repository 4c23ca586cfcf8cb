"""Large images leave a reply and come back to their places; errors are said in one line."""

from __future__ import annotations

import numpy as np
import pytest
from ray.exceptions import OutOfDiskError, RayTaskError

from tests.support.prompts import make_prompts
from ttsvar_ray.cluster.waiting import reason_of
from ttsvar_ray.cluster.worker import ImageReturn, image_returns, join_images, split_images
from ttsvar_ray.coordination.messages import FailureKind, SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.results import FinalImage


def report(*payloads: bytes) -> SegmentReport:
    return SegmentReport(
        prompt_key="p",
        attempt=1,
        segment_index=4,
        slots=tuple(range(len(payloads))),
        features=None,
        rewards=np.zeros((len(payloads), 1), dtype=np.float32),
        bits=((b"x",),) * len(payloads),
        images=tuple(FinalImage.of_bytes(p, width=1, height=1, image_format="png") for p in payloads),
    )


FAILURE = ShardFailure(
    prompt_key="q", attempt=1, segment_index=4, slots=(0,), kind=FailureKind.PROMPT, error="no"
)


def test_what_does_not_fit_travels_beside_the_reply() -> None:
    results = [report(b"a" * 6, b"b" * 6), FAILURE, report(b"c" * 3, b"d" * 2)]
    split, large = split_images(results, inline_bytes=10)
    assert large == [b"b" * 6, b"d" * 2]
    payloads = [[i.payload for i in r.images] for r in split if isinstance(r, SegmentReport)]
    assert payloads == [[b"a" * 6, ImageReturn(1)], [b"c" * 3, ImageReturn(2)]]
    joined = join_images(split, ["reply", "first", "second"])
    payloads = [[i.payload for i in r.images] for r in joined if isinstance(r, SegmentReport)]
    assert payloads == [[b"a" * 6, "first"], [b"c" * 3, "second"]]
    assert joined[1] is FAILURE


def test_only_last_segments_may_bring_images() -> None:
    prompt = make_prompts(1)[0]
    tasks = [ShardTask(prompt=prompt, attempt=1, segment_index=4, slots=(0, 1)) for _ in range(2)]
    assert image_returns(tasks, last_segment=4) == 4
    assert image_returns(tasks, last_segment=5) == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("two\n  lines"), "ValueError: two"),
        (RuntimeError(""), "RuntimeError"),
        (
            RayTaskError("run_batch", "\033[36mray::run_batch()\033[39m\n...", OutOfDiskError("no disk")),
            "OutOfDiskError: no disk",
        ),
    ],
)
def test_reasons_fit_one_line(error: Exception, expected: str) -> None:
    assert reason_of(error) == expected
