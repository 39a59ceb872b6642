"""The table of selectors: one entry adds a selector everywhere."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support import ROOT
from tests.unit.selection.make import ids, index_of, run, task_of
from tests.unit.selection.toy_selector import SHORTEST
from tlm_core.selection.selectors import SELECTORS, Selection
from tlm_core.training.recipe import resolve


def test_registered_selector_runs_and_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "shortest", SHORTEST)
    recipe = resolve("fast", "tiny", {"selection.selector": "shortest", "selection.max_passages": 2})
    facts = run(
        task_of(["any"]), index_of("ccc", "a", "bb"), tmp_path, **recipe.selection.model_dump(exclude_defaults=True)
    )
    assert ids(tmp_path) == ["p1", "p2"] and facts["selector"] == "shortest" and facts["passages"] == 2
    assert recipe.selection.needs_corpus and not recipe.selection.sized_by_queries
    schema = Selection.model_json_schema()["properties"]["selector"]
    assert "shortest" in schema["enum"] and "the shortest passages first" in schema["description"]
    with pytest.raises(ValidationError, match="Selector 'shortest' does not use 'query'"):
        Selection(selector="shortest", query="rake")


def test_unknown_selector_lists_the_valid_ones() -> None:
    with pytest.raises(ValidationError, match=r"Unknown selector 'shortest'\. Valid selectors: bm25, random"):
        Selection(selector="shortest")


@pytest.mark.parametrize("name", SELECTORS)
def test_entry_names_an_existing_function_and_is_documented(name: str) -> None:
    assert callable(pkgutil.resolve_name(SELECTORS[name].function))
    assert f"| `{name}`" in (ROOT / "docs" / "selection.md").read_text(encoding="utf-8")
