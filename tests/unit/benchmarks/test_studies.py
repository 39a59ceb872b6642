"""The command line of the studies accepts the commands in docs/results.md."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.quality import studies
from benchmarks.shared import ROOT

RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?:`|\.studies )((?:curve|prune|share) [^`…]*)`", RESULTS)


class Started(Exception):
    """The command line is valid, and a study begins."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of each study that begins. No study runs."""
    options: list[Any] = []

    def start(_kind: str, _tasks: list[str], study: Any, *_others: object) -> None:
        options.append(study)
        raise Started

    monkeypatch.setattr(studies, "_run", start)
    monkeypatch.setattr(studies, "minilm", lambda: "/models/minilm")
    monkeypatch.setattr(studies, "minilm_overrides", lambda *_: {})
    return options


def run(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("sys.argv", ["studies", *command.split()])
    with pytest.raises(Started):
        studies.main()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_results_are_valid(command: str, started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, command)
    assert len(started) == 1


def test_sizes_and_levels_replace_the_defaults(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "curve sci_cite --sizes 0.03 0.1 0.3 1")
    run(monkeypatch, "prune sciie --levels 0.15 0.4")
    run(monkeypatch, "prune sciie")
    curve, pruning, default = started
    assert curve.sizes == (0.03, 0.1, 0.3, 1)
    assert pruning.levels == (0.15, 0.4) and default.levels == (0.15, 0.3, 0.45, 0.6)
