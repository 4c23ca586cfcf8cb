"""Cluster files are valid for the launchers they are for, and run jobs that exist."""

from __future__ import annotations

import copy
import gzip
import json
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "cluster_configs"
LOCK = (ROOT / "requirements.lock").read_text()
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


def test_the_volume_is_filled_by_a_job_that_knows_what_cannot_be_mended() -> None:
    claim, job = yaml.safe_load_all((CONFIGS / "fetch.yaml").read_text())
    rayjob = yaml.safe_load((CONFIGS / "rayjob.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pods = [job["spec"]["template"]["spec"]]
    cluster = rayjob["spec"]["rayClusterSpec"]
    pods += [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        assert {"name": "HF_HOME", "value": "/data/huggingface"} in pod["containers"][0]["env"]
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "data")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2]


def test_kuberay_asks_for_gpu_nodes_a_token_and_as_many_workers_as_the_job_has() -> None:
    spec = yaml.safe_load((CONFIGS / "rayjob.yaml").read_text())["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    workers = int(flags_of(shlex.split(spec["entrypoint"]))["--workers"])
    assert group["minReplicas"] < group["replicas"] == group["maxReplicas"] == workers
    assert cluster["enableInTreeAutoscaling"], "replicas would never change without it"
    pod = group["template"]["spec"]
    assert pod["nodeSelector"] and pod["tolerations"]


def test_every_recipe_asks_for_a_token_and_names_a_driver_for_the_torch_of_the_lock() -> None:
    torch = re.search(r"^torch==(\S+)", LOCK, flags=re.MULTILINE)
    ray = re.search(r"^ray==(\S+)", LOCK, flags=re.MULTILINE)
    assert torch and ray
    for name in ("aws.yaml", "gcp.yaml", "local.yaml", "rayjob.yaml", "Dockerfile"):
        text = " ".join((CONFIGS / name).read_text().replace("#", " ").split())
        assert f"torch {torch[1]}" in text and "CUDA 13.0" in text and "driver of 580" in text, name
    for name in ("aws.yaml", "gcp.yaml", "local.yaml"):
        config = yaml.safe_load((CONFIGS / name).read_text())
        starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
        assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
        assert config["file_mounts"].items() >= {("~/.ray/auth_token", "~/.ray/auth_token")}
    for path in (*CONFIGS.iterdir(), ROOT / "README.md", ROOT / "docs" / "cluster.md"):
        assert "RAY_AUTH_MODE=disabled" not in path.read_text(), path
    assert f"rayproject/ray:{ray[1]}-py311-gpu" in (CONFIGS / "Dockerfile").read_text()
    spec = yaml.safe_load((CONFIGS / "rayjob.yaml").read_text())["spec"]
    assert spec["rayClusterSpec"]["rayVersion"] == ray[1]


def test_clouds_boot_images_that_are_named_and_keep_the_output_in_a_bucket() -> None:
    images = {
        name: [
            node["node_config"].get("ImageId")
            or node["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
            for node in yaml.safe_load((CONFIGS / name).read_text())["available_node_types"].values()
        ]
        for name in ("aws.yaml", "gcp.yaml")
    }
    assert all(image.startswith("resolve:ssm:/aws/service/deeplearning/ami/") for image in images["aws.yaml"])
    assert all(image.endswith("-nvidia-580") for image in images["gcp.yaml"])
    assert "--output s3://" in (CONFIGS / "aws.yaml").read_text()
    assert "--output gs://" in (CONFIGS / "gcp.yaml").read_text()


def test_the_image_installs_what_the_lock_names() -> None:
    extras = required_packages("rewards", "cluster", "s3")
    locked = set(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==", LOCK, flags=re.MULTILINE))
    assert {name.lower() for name in extras} <= locked
    text = (CONFIGS / "Dockerfile").read_text()
    dependencies, code = text.index("COPY --chown=ray pyproject.toml requirements.lock"), text.index(". .\n")
    assert dependencies < text.index("--constraint requirements.lock '.[rewards,cluster,s3]'") < code


def test_what_is_large_or_private_travels_with_no_copy_of_the_repository() -> None:
    from ray._private.runtime_env.packaging import _get_ignore_file

    for name in (".gitignore", ".rayignore"):
        ignored = _get_ignore_file(ROOT, name)
        assert ignored is not None
        for path in (
            "weights/infinity_2b_reg.pth",
            "outputs/run/data/part-00000.parquet",
            ".venv/bin/python",
        ):
            assert ignored(ROOT / path), f"{name} lets {path} travel"
        for path in ("ttsvar_ray/shapes/weights/config.json", "jobs/prompts/open_20.jsonl", "pyproject.toml"):
            assert not ignored(ROOT / path), f"{name} leaves {path} behind"
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".venv", ".git", "weights", "outputs"} <= set(lines)


def test_the_slurm_script_parses_and_its_options_exist() -> None:
    script = CONFIGS / "slurm.sh"
    for name in (script, CONFIGS / "run_job.sh"):
        subprocess.run(["bash", "-n", str(name)], check=True)
    from ray.scripts.scripts import start

    text = script.read_text().replace("\\\n", " ")
    used = {
        option
        for line in re.findall(r"ray start ([^\n]*)|here=\(([^)]*)\)", text)
        for option in re.findall(r"--[a-z-]+", " ".join(line))
    }
    assert used <= {option for parameter in start.params for option in parameter.opts}
    header = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", text, flags=re.MULTILINE))
    assert header["signal"] == "B:TERM@120" and "requeue" in header


def flags_of(words: list[str]) -> dict[str, str]:
    return {word: value for word, value in pairwise(words) if word.startswith("--")}


def required_packages(*extras: str) -> set[str]:
    """Return the packages that this one asks for, with some extras."""
    tomllib = pytest.importorskip("tomllib", reason="in Python since 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for e in extras for line in project["optional-dependencies"][e]),
    ]
    return {re.split(r"[^\w.-]", line)[0] for line in lines}


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
