"""Weights from a hub: pinned, resumed, offline; against a hub on the loopback interface.

Each step is a process of its own: huggingface_hub reads its environment once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40

STEP = """
import json, sys
from ttsvar_ray.models.weight_source import HubRepository
from ttsvar_ray.errors import CheckpointError
reference, patterns = sys.argv[1], sys.argv[2:]
try:
    pinned = HubRepository.parse(reference).pinned()
    folder = pinned.fetch(patterns)
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
else:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    print(json.dumps({"pinned": str(pinned), "folder": str(folder), "names": names}))
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "infinity_8b_weights").mkdir(parents=True)
    # Beyond the 10 MB that huggingface_hub writes at a time.
    (folder / "infinity_2b_reg.pth").write_bytes(bytes(range(256)) * 100_000)
    (folder / "infinity_vae_d32reg.pth").write_bytes(b"tokenizer")
    (folder / "infinity_8b_weights" / "model-00001-of-00001.safetensors").write_bytes(b"shard")
    (folder / "README.md").write_text("not needed")
    return folder


def environment_of(cache: Path, endpoint: str, *, offline: bool = False) -> dict[str, str]:
    """Return the environment of a process that knows no other hub than the one at `endpoint`."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_HOME": str(cache),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }


def step(cache: Path, endpoint: str, *arguments: str, offline: bool = False) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", STEP, *arguments],
        env=environment_of(cache, endpoint, offline=offline),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def test_only_what_is_needed_is_fetched_once_resumed_and_found_offline(files: Path, tmp_path: Path) -> None:
    cache, wanted = tmp_path / "cache", ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth")
    hub = FakeHub({"FoundationVision/Infinity": (COMMIT, files)}, cut_once={"infinity_2b_reg.pth"})
    with serve(hub):
        first = step(cache, hub.endpoint, "hf:FoundationVision/Infinity", *wanted)
        assert first["pinned"] == f"hf:FoundationVision/Infinity@{COMMIT}"
        assert first["names"] == sorted(wanted)
        ranges = [rng for method, path, rng in hub.requests if method == "GET" and path.endswith(wanted[0])]
        assert any(rng is not None and not rng.startswith("bytes=0-") for rng in ranges), (
            "resumed, not restarted"
        )
        fetched = Path(str(first["folder"])) / wanted[0]
        assert fetched.read_bytes() == (files / wanted[0]).read_bytes()
        sent = len(hub.downloads())
        assert step(cache, hub.endpoint, f"hf:FoundationVision/Infinity@{COMMIT}", *wanted) == first
        assert len(hub.downloads()) == sent, "what is there is not fetched again"
    again = step(cache, hub.endpoint, "hf:FoundationVision/Infinity", *wanted, offline=True)
    assert again == first


def test_what_cannot_be_had_is_explained_with_the_command_that_fetches_it(
    files: Path, tmp_path: Path
) -> None:
    with serve(FakeHub({"FoundationVision/Infinity": (COMMIT, files)})) as hub:
        absent = step(tmp_path / "a", hub.endpoint, "hf:nobody/nothing", "*")
        assert "hf:nobody/nothing: the hub cannot be asked for its commit" in str(absent["error"])
        gone = step(
            tmp_path / "a", hub.endpoint, f"hf:FoundationVision/Infinity@{OTHER}", "infinity_8b_weights/*"
        )
        expected = (
            f"hf download FoundationVision/Infinity --include 'infinity_8b_weights/*' --revision {OTHER}"
        )
        assert expected in str(gone["error"])
    offline = step(tmp_path / "b", hub.endpoint, "hf:google/flan-t5-xl", "*", offline=True)
    assert "offline mode is on" in str(offline["error"])
    assert "hf download google/flan-t5-xl" in str(offline["error"])


MODEL = """
import sys
from ttsvar_ray.config.load import load_config
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import model_choice, resolve
from ttsvar_ray.job.weights import fingerprints, pin_weights
from ttsvar_ray.models.registry import fetch_model
config = load_config(None, ["model.name=hf:someone/small@main", "model.device=cpu"], needs_files=False)
pinned = pin_weights(resolve(config))
print(pinned.config.model.name, *sorted(set(fingerprints(pinned).values())))
fetch_model(model_choice(pinned.config))
print(build_engine(pinned).model_name)
"""


def test_a_model_directory_in_a_repository_runs_with_the_reward_that_is_in_it(tmp_path: Path) -> None:
    weights = Path(__file__).parents[2] / "ttsvar_ray" / "shapes" / "weights"
    with serve(FakeHub({"someone/small": (COMMIT, weights)})) as hub:
        environment = {**environment_of(tmp_path / "cache", hub.endpoint), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", MODEL],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    pinned = f"hf:someone/small@{COMMIT}"
    first, second = done.stdout.splitlines()
    assert first.split()[0] == pinned
    assert set(first.split()[1:]) == {
        pinned,
        "transformer.safetensors",
        "tokenizer.safetensors",
        "text_encoder",
    }
    assert second == "shapes"


def test_prompts_of_a_data_set_are_those_of_its_split(tmp_path: Path) -> None:
    files = tmp_path / "set" / "en"
    files.mkdir(parents=True)
    (files.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: test\n    path: en/b*.jsonl\n---\n"
    )
    for name, texts in {"a": ["one"], "b1": ["two", "three"], "b2": ["four"]}.items():
        lines = (json.dumps({"text": text, "tag": name}) for text in texts)
        (files / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    script = (
        "import json; from ttsvar_ray.prompts.read import read_prompts, scan_prompts; "
        "from ttsvar_ray.prompts.source import PromptSource; "
        "source = PromptSource(path='hf://datasets/somebody/prompts', column='text', split='test'); "
        "scan = scan_prompts(source); "
        "print(json.dumps([[p.text, p.columns['tag']] for p in read_prompts(source, scan=scan)]))"
    )
    with serve(FakeHub({"datasets/somebody/prompts": (COMMIT, files.parent)})) as hub:
        command = [sys.executable, "-c", script]
        environment = environment_of(tmp_path / "cache", hub.endpoint)
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["two", "b1"], ["three", "b1"], ["four", "b2"]]
