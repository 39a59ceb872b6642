"""The settings of the pretrained rival."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import pretrained


@pytest.mark.parametrize(
    ("by_epochs", "chosen"),
    [({5: 0.5, 10: 0.4}, 5), ({5: 0.5, 10: 0.6, 20: 0.55}, 10), ({5: 0.5, 10: 0.6, 20: 0.7, 40: 0.8}, 40)],
)
def test_epochs_of_the_best_rate_double_until_the_score_falls(
    by_epochs: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validation(_: str, rate: float, epochs: int) -> float:
        return by_epochs[epochs] if rate == 2e-4 else 0.1

    monkeypatch.setattr(pretrained, "_validation", validation)
    monkeypatch.setattr(pretrained, "minilm_overrides", lambda rate, epochs: {"rate": rate, "epochs": epochs})
    assert pretrained.tuned("colors") == {"rate": 2e-4, "epochs": chosen}


def test_recorded_trials_do_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def report_of_run(_: str, label: str, *__: Any) -> Path:
        runs.append(label)
        return tmp_path

    report = {"models": {"encoder": {"mean": {"validation": {"macro_f1": 0.25 + len(runs)}}}}}
    monkeypatch.setattr(pretrained, "TRIALS", tmp_path / "pretrained.jsonl")
    monkeypatch.setattr(pretrained, "minilm_overrides", lambda *_: {})
    monkeypatch.setattr(pretrained, "report_of_run", report_of_run)
    monkeypatch.setattr(pretrained, "read_json", lambda _: report)
    for _ in range(2):
        assert pretrained._validation("colors", 1e-4, 5) == 0.25
    pretrained._validation("colors", 1e-4, 10)
    assert runs == ["minilm lr=0.0001 epochs=5", "minilm lr=0.0001 epochs=10"]
