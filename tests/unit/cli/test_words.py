"""What the commands say of settings, and of names that are nearly right."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from tests.support.settings import option_names
from ttsvar_ray.cli.app import app
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import ConfigurationError, TtsVarError
from ttsvar_ray.job.resolved import resolve

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_all_settings_are_listed_with_their_defaults() -> None:
    heads = [line for line in run("settings").splitlines() if not line.startswith(" ")]
    assert [head.partition(" = ")[0] for head in heads] == option_names()
    assert "strategy.cluster_restarts = 10" in heads


def test_settings_are_found_by_a_word() -> None:
    shown = run("settings", "MEMORY")
    assert "engine.memory_gb = null" in shown and "seed = 0" not in shown
    assert CliRunner().invoke(app, ["settings", "xylophone"]).exit_code == 1


def test_the_schema_takes_the_shipped_jobs_and_no_unknown_key() -> None:
    schema = json.loads(run("schema"))
    for file in sorted((ROOT / "jobs").glob("*.yaml")):
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"strategy": {"lamda": 1}}, schema)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.name=infinity-2B", "did you mean 'infinity-2b'?"),
        ("model.name=shape", "did you mean 'shapes'?"),
        ("reward.name=ImageReward", "did you mean 'image-reward'?"),
        ("features.extractor=poll", "did you mean 'pool'?"),
    ],
)
def test_nearly_right_names_are_answered_with_the_right_one(setting: str, said: str) -> None:
    with pytest.raises(TtsVarError) as caught:
        resolve(load_config(None, [setting], needs_files=False), needs_parts=True)
    assert said in str(caught.value)


def test_a_list_without_brackets_is_answered_with_what_to_type() -> None:
    with pytest.raises(
        ConfigurationError, match=r"write it as 'strategy.cluster_scales=\[2,5\]', with the quotes"
    ):
        load_config(None, ["strategy.cluster_scales=2,5"], needs_files=False)
