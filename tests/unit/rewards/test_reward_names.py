"""Every reward that the settings offer is documented, costed, and offered for fetching; no other is."""

from __future__ import annotations

from pathlib import Path

from ttsvar_ray.cli.doctor.judges import JUDGES
from ttsvar_ray.costs.judges import REWARD_COSTS
from ttsvar_ray.rewards.aesthetic_reward import LAION_HEAD, V25_HEAD
from ttsvar_ray.rewards.clip_reward import HPS_FILES
from ttsvar_ray.rewards.image_reward import PUBLISHED_FILE
from ttsvar_ray.rewards.registry import REWARD_NAMES

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text()
SHIPPED = {"shapes"}
WITHOUT_FILES = {"constant"}


def test_the_page_names_every_reward_and_its_files() -> None:
    for word in (*REWARD_NAMES, *HPS_FILES.values(), LAION_HEAD, V25_HEAD, PUBLISHED_FILE):
        assert f"`{word}`" in PAGE, word


def test_the_plan_knows_what_every_reward_costs() -> None:
    assert set(REWARD_COSTS) == set(REWARD_NAMES) - SHIPPED


def test_the_doctor_knows_the_files_of_every_reward() -> None:
    files = {judge.name: {name for fetch in judge.fetches for name in fetch.files} for judge in JUDGES}
    assert set(files) >= set(REWARD_NAMES) - SHIPPED - WITHOUT_FILES
    assert PUBLISHED_FILE in files["image-reward"]
    assert LAION_HEAD in files["laion-aesthetic"]
    assert V25_HEAD in files["aesthetic-v2.5"]
    for name, file in HPS_FILES.items():
        assert file in files[name]
