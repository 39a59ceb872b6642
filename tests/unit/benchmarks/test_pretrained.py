"""The settings of the pretrained rival."""

from __future__ import annotations

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
