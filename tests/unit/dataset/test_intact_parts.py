"""Parts are what was written: checksums, digests, manifests, also while one is replaced."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from outcome_samples import CONTEXT, encoded, failure, result

from ttsvar_ray.dataset.dead_letters import read_letters
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.part_manifest import read_part_manifest
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import DamagedImageError, OutputError
from ttsvar_ray.storage import location


def flip(file: Path, marker: bytes) -> None:
    """Change one bit of a file, behind the first place where `marker` stands."""
    content = bytearray(file.read_bytes())
    content[content.index(marker) + len(marker)] ^= 1
    file.write_bytes(bytes(content))


def test_pages_of_parts_have_checksums(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_chunk(layout, 0, rows=range(2), finished=[result(0), result(1)], failed=[], context=CONTEXT)
    part, trace = (tmp_path / f"{folder}/part-00000.parquet" for folder in ("data", "trace"))
    flip(part, encoded(1).payload[:60])
    with pq.ParquetFile(part, page_checksum_verification=True) as file, pytest.raises(OSError, match="CRC"):
        file.read()
    # The first page of the trace lies behind the magic number and the header of the page.
    content = bytearray(trace.read_bytes())
    content[60] ^= 1
    trace.write_bytes(bytes(content))
    with pytest.raises(OSError, match=r"CRC|Corrupt|Thrift"):
        pq.read_table(trace, page_checksum_verification=True)


def test_flipped_bits_are_not_copied_into_a_new_part(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_chunk(layout, 0, rows=range(2), finished=[result(0)], failed=[failure(1)], context=CONTEXT)
    part = tmp_path / "data/part-00000.parquet"
    flip(part, encoded(0).payload[:60])
    before = part.read_bytes()
    with pytest.raises(OutputError, match=r"part-00000\.parquet: not a whole Parquet file .*CRC"):
        write_chunk(layout, 0, rows=range(2), finished=[result(1)], failed=[], context=CONTEXT)
    assert part.read_bytes() == before
    assert [letter["row"] for letter in read_letters(layout.failed_part(0))] == [1]


def test_an_image_that_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    outcome = result(0)
    kept = outcome.images[0]
    damaged = bytearray(kept.image.payload)
    damaged[30] ^= 4
    image = dataclasses.replace(kept.image, payload=bytes(damaged))
    outcome = dataclasses.replace(outcome, images=(dataclasses.replace(kept, image=image),))
    with pytest.raises(DamagedImageError, match="image 0 of prompt id0#0"):
        write_chunk(layout, 0, rows=range(1), finished=[outcome], failed=[], context=CONTEXT)
    assert layout.data_parts() == {}


def test_the_manifest_of_a_part_has_the_digests_of_its_files(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_chunk(
        layout, 3, rows=range(9, 12), finished=[result(9), result(10)], failed=[failure(11)], context=CONTEXT
    )

    def expected(rows: int) -> dict[str, Any]:
        return {
            name: {
                "rows": rows,
                "bytes": (tmp_path / name / "part-00003.parquet").stat().st_size,
                "sha256": hashlib.sha256((tmp_path / name / "part-00003.parquet").read_bytes()).hexdigest(),
            }
            for name in ("data", "trace")
        }

    manifest = tmp_path / "manifest/part-00003.json"
    assert json.loads(manifest.read_text()) == expected(2)
    write_chunk(layout, 3, rows=range(9, 12), finished=[result(11)], failed=[], context=CONTEXT)
    assert json.loads(manifest.read_text()) == expected(3)


def test_a_part_that_is_replaced_is_what_its_manifest_says_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = OutputLayout(tmp_path)
    write_chunk(layout, 0, rows=range(2), finished=[result(0)], failed=[failure(1)], context=CONTEXT)
    steps: list[int] = []

    def look() -> None:
        manifest = read_part_manifest(layout.manifest_part(0))
        assert manifest is not None
        data, trace = (
            hashlib.sha256((tmp_path / name / "part-00000.parquet").read_bytes()).hexdigest()
            for name in ("data", "trace")
        )
        assert data in {each.sha256 for each in (manifest.data, *manifest.data_before)}
        assert trace in {each.sha256 for each in (manifest.trace, *manifest.trace_before)}
        steps.append(1 + len(manifest.data_before) + len(manifest.trace_before))

    def rename(source: Path, target: Path) -> None:
        look()
        source.replace(target)
        look()

    monkeypatch.setattr(location, "_rename", rename)
    write_chunk(layout, 0, rows=range(2), finished=[result(1)], failed=[], context=CONTEXT)
    look()
    assert steps == [1, 3, 3, 3, 3, 3, 3, 1, 1]
