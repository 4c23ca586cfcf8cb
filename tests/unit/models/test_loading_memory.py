"""Loading and converting hold no second copy of the weights: measured on a model of 150 MB.

Memory of the process is what is its own; files that are mapped belong to the page cache and are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, dataclasses, gc, json, sys, threading
from pathlib import Path
import torch
from tests.support.published_infinity import TINY, random_weights, write_published
from ttsvar_ray.models.infinity.convert import convert
from ttsvar_ray.models.infinity.directory import build_transformer
from ttsvar_ray.models.infinity.presets import InfinityPreset
from ttsvar_ray.models.infinity.published import describe_preset
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.weight_files import read_weights

folder = Path(sys.argv[1])
preset = dataclasses.replace(TINY, depth=8, embed_dim=512, num_heads=8)
torch.set_num_threads(1)

def own_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def peak_of(action):
    gc.collect()
    # What was let go before must not be there to be used again, unseen.
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, stop = own_bytes(), 0, threading.Event()
    def watch():
        nonlocal peak
        while not stop.wait(0.001):
            peak = max(peak, own_bytes())
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        kept = action()
    finally:
        stop.set()
        thread.join()
    return max(peak, own_bytes()) - before

def load(file, dtype):
    schedule = preset.quantizer().schedule
    weights = read_weights(file)
    return build_transformer(
        preset.transformer_config(), schedule, weights, device=torch.device("cpu"), dtype=dtype, source="x"
    )

write_published(folder, preset)
size = (folder / preset.weights).stat().st_size
narrow = torch.bfloat16
published = describe_preset(preset, path=str(folder))
shares = {
    "convert": peak_of(lambda: convert(published, folder / "model", dtype=narrow)),
    "float32": peak_of(lambda: load(folder / preset.weights, torch.float32)),
    "bfloat16": peak_of(lambda: load(folder / preset.weights, narrow)),
    "safetensors": peak_of(lambda: load(folder / "model" / "transformer.safetensors", narrow)),
}
print(json.dumps({what: peak / size for what, peak in shares.items()}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' account of a process")
def test_no_weight_is_held_twice(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    share = json.loads(done.stdout.splitlines()[-1])
    assert share["float32"] < 0.3, "mapped, not copied"
    assert 0.3 < share["bfloat16"] < 0.6, "half of the file, as bfloat16 is, and one tensor on the way"
    assert share["safetensors"] < 0.3, "its blocks are bfloat16 already: mapped"
    assert share["convert"] < 0.4, "one tensor at a time"
