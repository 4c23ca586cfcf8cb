"""A disk that fills up in mid-run: the run ends and says so; with more room the same command goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.chaos import Driver, write_prompts
from tests.support.chaos_driver import TO_BE_CONTINUED

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

PROMPTS = 40
SMALL, LARGE = "2m", "64m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_more_room_lets_it_go_on(small_disk: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    output = small_disk / "out"
    driver = Driver(
        arguments=[
            *("--address", "local", "--prompts", str(prompts), "--output", str(output)),
            *("--workers", "1", "--workers-per-cell", "1", "--pause", "0", "--rows-per-part", "4", "--noisy"),
        ],
        log=tmp_path / "driver.log",
    )
    driver.start()
    assert driver.process is not None
    assert driver.process.wait(timeout=400) == TO_BE_CONTINUED, driver.log.read_text()
    message = driver.log.read_text()
    assert "RunFailedError" in message
    assert "No space left on device" in message or "is full" in message, message[-2000:]
    assert str(output) in message
    committed = sorted((output / "data").glob("part-*"))
    before = {path.name: path.read_bytes() for path in committed}
    assert 0 < len(before) < PROMPTS // 4
    for part in committed:
        assert pq.read_metadata(part).num_rows == 4, "a part that has its name is whole"

    subprocess.run(["mount", "-o", f"remount,size={LARGE}", str(small_disk)], check=True)
    driver.start()
    assert driver.process.wait(timeout=400) == 0, driver.log.read_text()
    after = {path.name: path.read_bytes() for path in (output / "data").glob("part-*")}
    assert len(after) == PROMPTS // 4
    assert all(after[name] == content for name, content in before.items())
    assert pq.read_table(output / "data", columns=["row"])["row"].to_pylist() == list(range(PROMPTS))
    assert not list((output / "data").glob(".*")), "leftovers of the part that did not fit"
