"""docs/report.md names facts of a selection by their keys."""

from __future__ import annotations

import json
import re

from tests.support import ROOT


def test_page_names_keys_of_the_selection() -> None:
    section = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").split("## Selection and leaks")[1]
    keys = re.findall(r"^- `([\w.]+)`", section.split("\n## ")[0], re.MULTILINE)
    examples = json.loads((ROOT / "services" / "api" / "examples.json").read_text(encoding="utf-8"))
    facts = examples["tlm_core__wire__Selection"]["facts"]
    assert len(keys) >= 4
    for key in keys:
        value = facts
        for name in key.split("."):
            value = value[name]
