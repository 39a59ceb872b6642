"""The one form in which benchmarks print their figures."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import alternate, figure, ratios


def test_a_figure_is_one_line_with_the_median_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    figure("speed", [3.0, 1.0, 2.1234567], goal=2, unit="x")
    assert json.loads(capsys.readouterr().out) == {
        "name": "speed",
        "value": 2.12346,
        "goal": 2,
        "better": "higher",
        "unit": "x",
        "runs": [3.0, 1.0, 2.12346],
    }


def test_what_could_not_be_measured_is_null_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    figure("speed", [], unit="x", reason="no GPU on this machine")
    line = json.loads(capsys.readouterr().out)
    assert line["value"] is None
    assert line["reason"] == "no GPU on this machine"
    with pytest.raises(ValueError, match="say why"):
        figure("speed", [], unit="x")


def test_a_run_that_is_no_number_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not a number"):
        figure("speed", [1.0, float("nan")], unit="x")
    assert not capsys.readouterr().out


def test_rivals_take_turns_and_the_first_turn_does_not_count() -> None:
    told: list[str] = []

    def rival(name: str, rate: float) -> float:
        told.append(name)
        return rate * len(told)

    found = alternate({"a": lambda: rival("a", 1.0), "b": lambda: rival("b", 2.0)}, repeats=2)
    assert told == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [8.0, 12.0]}
    assert ratios(found["b"], found["a"]) == [8 / 3, 12 / 5]
