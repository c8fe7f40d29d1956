"""The recipe is configuration: it comes from a file, goes into the study's, and what is wrong in it is named."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.cli.options import read_recipe
from nas.study.config import StudyConfig
from trainers.learning.recipe import CHOICES, RANGES, Recipe


def test_a_recipe_comes_from_a_file_and_lives_in_the_studys(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('margin = "additive"\nspeeds = [0.9, 1.0, 1.1]\nbatch = 8\nmask_share = 1\n')
    recipe = read_recipe(tmp_path / "recipe.toml", 32)
    assert recipe == dataclasses.replace(Recipe(), margin="additive", speeds=(0.9, 1.0, 1.1), batch=32, mask_share=1)
    assert read_recipe(None, None) == Recipe()
    config = StudyConfig(name="a", recipe=recipe, data=("b.parquet",))
    config.write(tmp_path / "study.toml")
    assert StudyConfig.read(tmp_path / "study.toml") == config


def test_every_choice_has_its_default_among_what_is_allowed() -> None:
    assert all(getattr(Recipe(), name) in allowed and len(set(allowed)) > 1 for name, allowed in CHOICES.items())
    assert {field.name for field in dataclasses.fields(Recipe) if field.type == "float"} <= set(RANGES)


def test_the_page_lists_every_field_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "trainers/README.md").read_text()
    table = page[page.index("| field | default |") :]
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in dataclasses.asdict(Recipe()).items()}
    assert listed == text
    example = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    assert Recipe.from_dict(tomllib.loads(example)) != Recipe()


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"speaker_layer": 1, "heads": "mean"}, "it needs heads that read every state"),
        ({"margin": "wide"}, "margin is 'wide'; allowed are angular, additive"),
        ({"rates": 1e-3}, "no rates; known are"),
        ({"rate": "fast"}, "rate is 'fast', another kind"),
        ({"frozen": "false"}, "another kind"),
        ({"batch": 16.5}, "another kind"),
        ({"noise_share": True}, "another kind"),
        ({"speeds": 1.0}, "another kind"),
        ({"speeds": ["fast"]}, "another kind"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"mask_share": 1.5}, "mask_share is 1.5; it is from 0 to 1"),
        ({"batch": 1}, "batch is 1"),
        ({"speeds": []}, "speeds are []"),
        ({"speaker_speeds": [1.0, 9.0]}, "speaker_speeds are [1.0, 9.0]"),
        ({"keywords": False, "speakers": False}, "no task"),
        ({"matching": "layer to layer", "heads": "predictions"}, "layer to layer"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)) as raised:
        Recipe.from_dict(fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fields", [{"keywords": False}, {"speakers": False}, {"frozen": True}])
def test_a_study_trains_everything_for_both_tasks(fields: dict[str, Any]) -> None:
    """Its references and its table are made of these three."""
    with pytest.raises(ValueError, match=r"srlnas reproduce.* compares"):
        StudyConfig(name="a", recipe=Recipe.from_dict(fields))


@pytest.mark.parametrize(
    ("content", "part"), [(None, "there is no recipe"), (b"rate = ", "is not TOML"), (b"\xff\xfe", "is not TOML")]
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes | None, part: str) -> None:
    if content is not None:
        (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(ValueError, match=part):
        read_recipe(tmp_path / "recipe.toml", None)


@given(st.integers(1, 2048), st.integers(1, 2048))
def test_the_wider_a_student_the_lower_its_rate_from_256_channels_on(one: int, other: int) -> None:
    narrow, wide = sorted((one, other))
    recipe = Recipe(rate=3e-4)
    assert recipe.rate_at(wide) <= recipe.rate_at(narrow) <= recipe.rate_at(256) == 3e-4
    assert recipe.rate_at(512) == pytest.approx(1e-4, rel=0.1)
