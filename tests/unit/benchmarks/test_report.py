"""The form in which benchmarks print figures."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import alternate, figure, ratios


def test_figure_is_one_line_with_the_median_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    figure("speed", [3.0, 1.0, 2.1234567], goal=2, unit="x")
    assert json.loads(capsys.readouterr().out) == {
        "name": "speed",
        "value": 2.12346,
        "goal": 2,
        "better": "higher",
        "unit": "x",
        "runs": [3.0, 1.0, 2.12346],
    }


def test_unmeasured_figure_is_null_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    figure("speed", [], unit="x", reason="no GPU on this machine")
    line = json.loads(capsys.readouterr().out)
    assert line["value"] is None
    assert line["reason"] == "no GPU on this machine"
    with pytest.raises(ValueError, match="Give a reason"):
        figure("speed", [], unit="x")


def test_run_that_is_not_finite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        figure("speed", [1.0, float("nan")], unit="x")
    assert not capsys.readouterr().out


def test_rivals_alternate_after_a_warm_up() -> None:
    turns: list[str] = []

    def rival(name: str, rate: float) -> float:
        turns.append(name)
        return rate * len(turns)

    results = alternate({"a": lambda: rival("a", 1.0), "b": lambda: rival("b", 2.0)}, repeats=2)
    assert turns == ["a", "b"] * 3
    assert results == {"a": [3.0, 5.0], "b": [8.0, 12.0]}
    assert ratios(results["b"], results["a"]) == [8 / 3, 12 / 5]
