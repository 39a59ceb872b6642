"""Settings that the trainer refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.trainer import drain
from services.trainer.settings import TrainerSettings


@pytest.mark.parametrize(("value", "gpus"), [("0", 0.0), ("1", 1.0), ("0.5", None), ("2", None)])
def test_a_worker_has_one_gpu_or_none(value: str, gpus: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"STORAGE": "/unused", "SCRATCH": "/unused", "WORKER_GPUS": value}.items():
        monkeypatch.setenv(f"TLM_TRAINER_{name}", text)
    if gpus is None:
        with pytest.raises(ValidationError, match=f"TLM_TRAINER_WORKER_GPUS is {value}. Set it to 1"):
            TrainerSettings()
    else:
        assert TrainerSettings().worker_gpus == gpus


def test_drain_waits_until_workers_have_stopped() -> None:
    """The call of Ray comes first, and Kubernetes kills the container after 120 s."""
    needed = drain._NODE_SECONDS + TrainerSettings.model_fields["drain_seconds"].default
    assert needed < drain._PATIENCE_SECONDS < 120
