"""Cluster files are valid for the launchers they are for, and run jobs that exist."""

from __future__ import annotations

import copy
import gzip
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ttsvar_ray.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "cluster_configs"
SCHEMA = ROOT / "tests" / "data" / "schemas" / "kuberay_rayjob_v1.json.gz"


@pytest.mark.parametrize("name", ["local.yaml", "aws.yaml", "gcp.yaml"])
def test_ray_up_accepts_the_launcher_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CONFIGS / name).read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    misspelt = {**config, "max_wokers": 3}
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(misspelt))


def test_kuberay_accepts_the_ray_job() -> None:
    manifest = yaml.safe_load((CONFIGS / "rayjob.yaml").read_text())
    validator = jsonschema.Draft7Validator(closed_schema())
    assert [error.message for error in validator.iter_errors(manifest)] == []
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["kind"] == "RayJob"
    misspelt = copy.deepcopy(manifest)
    misspelt["spec"]["shutDownAfterJobFinishes"] = True
    assert list(validator.iter_errors(misspelt))
    wrong_kind = copy.deepcopy(manifest)
    wrong_kind["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "4"
    assert list(validator.iter_errors(wrong_kind))


def test_pods_outlive_the_stop_of_a_job() -> None:
    spec = yaml.safe_load((CONFIGS / "rayjob.yaml").read_text())["spec"]
    wait = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(group["template"]["spec"]["terminationGracePeriodSeconds"] > wait for group in groups)
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes


def test_the_slurm_script_parses_and_its_options_exist() -> None:
    script = CONFIGS / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    text = script.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"ray symmetric-run (.*?) -- ", text)
    used = set(re.findall(r"--[a-z-]+", command))
    own = {option for parameter in symmetric_run.params for option in parameter.opts}
    passed_on = {option for parameter in start.params for option in parameter.opts}
    assert used <= own | (passed_on - {"--head", "--node-ip-address", "--port", "--block"})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_commands_in_cluster_files_run_jobs_that_exist(path: Path) -> None:
    text = re.sub(r"\\\n#?", " ", path.read_text())
    commands = re.findall(r"python -m ttsvar_ray generate (jobs/[^\n]*(?:\n +--[^\n]*)*)", text)
    assert commands
    for words in commands:
        job, *arguments = shlex.split(words)
        flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
        assert set(flags) <= {"--output", "--workers", "--model", "--prompts"}
        assert load_config(ROOT / job).strategy.name == "tts-var"
        assert Path(flags["--output"]).is_absolute(), "relative output of a submitted job is hard to find"


def closed_schema() -> dict[str, Any]:
    """Return KubeRay's schema as plain JSON schema that refuses unknown fields."""
    schema: dict[str, Any] = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    schema.pop("_provenance")
    schema["properties"]["apiVersion"]["const"] = "ray.io/v1"
    schema["properties"]["kind"]["const"] = "RayJob"
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    schema["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = True
    close(schema)
    return schema


def close(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            close(item)
    elif isinstance(node, dict):
        if node.get("x-kubernetes-int-or-string"):
            node.pop("type", None)
            node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        for value in node.values():
            close(value)
