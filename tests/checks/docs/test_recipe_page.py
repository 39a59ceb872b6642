"""The tables of docs/recipe.md match the presets."""

from __future__ import annotations

import re

import pytest

from services.api.work import Texts, shape_of
from tests.support import ROOT
from tlm_core.training.architectures import architecture_of
from tlm_core.training.recipe import Recipe, resolve

PAGE = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| `(fast|paper)` `(\w+)` \| (\d+) × (\d+) \| ([\d.]+) \| ([\d,]+) (tokens|steps)", PAGE, re.MULTILINE
)


def test_each_scale_has_a_row() -> None:
    scales = ("tiny", "small", "medium", "large")
    rows = [(name, scale) for name in ("fast", "paper") for scale in scales]
    assert [row[:2] for row in ROWS] == [("fast", "quick"), *rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_row_matches_its_preset(row: tuple[str, ...]) -> None:
    name, scale, layers, width, millions, amount, unit = row
    recipe = resolve(name, scale)
    shape = shape_of(recipe.model, Texts({}, 0.0, 7, recipe.tokenizer.vocab_size))
    assert shape is not None
    assert (shape.layers, shape.hidden) == (int(layers), int(width))
    assert f"{architecture_of(shape).exported_parameters(shape) / 1e6:.1f}" == millions
    assert getattr(recipe.joint.budget, unit) == int(amount.replace(",", ""))


def test_documented_keys_and_defaults_match_the_recipe() -> None:
    # `resolve` replaces the precision `auto`.
    recipe = resolve("fast", "tiny").model_copy(update={"precision": Recipe.model_fields["precision"].default})
    documented = re.findall(
        r"^\| `([a-z_.0-9]+)` \| `?([\w]+)`? \|", PAGE.split("## Keys")[1].split("## Scales")[0], re.MULTILINE
    )
    assert len(documented) >= 7
    for key, value in documented:
        value_in_recipe = recipe
        for part in key.split("."):
            value_in_recipe = getattr(value_in_recipe, part)
        assert str(None if value_in_recipe == () else value_in_recipe).lower().removesuffix(".0") == value.lower(), key


@pytest.mark.parametrize("page", ["docs/scale.md", "docs/report.md", "README.md"])
def test_quoted_scores_occur_in_the_results(page: str) -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for figure in re.findall(r"0\.\d{3} ± 0\.\d{3}", (ROOT / page).read_text(encoding="utf-8")):
        assert figure in results, f"{page} quotes {figure}, which is no longer among the results"
