"""Device profiles: each number with its source; files that mean nothing are refused; costs know no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ttsvar_ray.costs.profile import device_names, load_profile
from ttsvar_ray.errors import ConfigurationError

SHIPPED = Path(__file__).parents[3] / "ttsvar_ray" / "costs" / "devices"


def test_shipped_devices() -> None:
    assert set(device_names()) == {"h200", "h100", "a100-80g", "a100-40g", "l40s", "rtx4090", "cpu"}


@pytest.mark.parametrize("name", device_names())
def test_every_number_has_a_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert all(
        "data sheet" in text or "assumed" in text or "measured" in text for text in profile.sources.values()
    )
    content = json.loads((SHIPPED / f"{name}.json").read_text())
    assert set(profile.sources) == content.keys() - {"format_version", "kind", "name", "title"}
    entry = content["narrow_flops"]
    expected = entry["peak"] * entry["efficiency"] if "peak" in entry else entry["value"]
    assert profile.narrow_flops == pytest.approx(expected)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    content = json.loads((SHIPPED / "h200.json").read_text())
    content["name"] = "mine"
    content["narrow_flops"] = {"value": 5e14, "source": "measured"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    assert load_profile(path).narrow_flops == 5e14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "x"}, "is this a device profile"),
        ({"format_version": 7}, "expected 1, got 7"),
        ({"speed": 1}, "unknown key 'speed'"),
        ({"memory_bytes": {"value": 0, "source": "x"}}, "memory_bytes: expected value"),
        ({"memory_bytes": {"value": 1}}, "memory_bytes: expected value"),
        ({"conv_flops": {"peak": 1, "source": "x"}}, "conv_flops: expected value"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**json.loads((SHIPPED / "h200.json").read_text()), **change}))
    with pytest.raises(ConfigurationError, match=message):
        load_profile(path)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"rtx4090.*got 'h300'"):
        load_profile("h300")


def test_costs_are_free_of_torch() -> None:
    program = "import sys, ttsvar_ray.costs, ttsvar_ray.costs.seconds; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
