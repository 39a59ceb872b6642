"""The demo: a fair comparison, told as it came out, and clear words when something is in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.gateway import job_view, report
from tlm_client import demo
from tlm_client.stack.folder import StackFolder
from tlm_core.training.recipe import resolve
from tlm_core.wire import Job


def arm(mean: float, **over: Any) -> demo.Arm:
    scores = {"macro_f1": mean, "micro_f1": mean, "accuracy": mean}
    test = {"test": scores, "validation": scores}
    seeds = [{"seed": 0, "test": {**scores, "rows": 1050}, "validation": scores}]
    found = {**report(), "mean": test, "spread": {"test": dict.fromkeys(scores, 0.01)}, "seeds": seeds, "best_seed": 0}
    return demo.Arm(Job.model_validate(job_view(state="succeeded")), {**found, **over}, 12.0)


def test_both_arms_train_the_same_encoder_with_the_same_finetuning() -> None:
    tlm, alone = (resolve(spec.recipe, spec.scale, spec.set) for spec in (demo.ARMS["TLM"], demo.ARMS["task only"]))
    assert (tlm.model, tlm.finetune, tlm.tokenizer, tlm.precision) == (
        alone.model, alone.finetune, alone.tokenizer, alone.precision
    )  # fmt: skip
    assert tlm.joint.enabled and not alone.joint.enabled
    assert tlm.selection.selector == "bm25" and alone.selection.selector == "none"
    assert demo.ARMS["TLM"].seeds == demo.ARMS["task only"].seeds
    assert len(demo.ARMS["TLM"].seeds) == 3


def test_the_table_tells_what_came_out_even_if_retrieval_loses(capsys: pytest.CaptureFixture[str]) -> None:
    cost = {"cost": {"total": {"flops": 2.5e13, "seconds": 140.0}}}
    classified = [{"text": "a [bold] text", "label": "torch", "probability": 0.5, "true_label": "ray"}]
    demo._show({"TLM": arm(0.4, **cost), "task only": arm(0.5, cost={})}, classified)
    out = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "0.400 ± 0.010" in rows["TLM"] and "140" in rows["TLM"] and "2.50e+13" in rows["TLM"]
    assert "0.500 ± 0.010" in rows["task only"] and "n/a" in rows["task only"]
    assert "0.100" in rows["majority class"]
    assert "a [bold] text" in rows and "1,050 test rows" in out


def test_the_result_holds_what_the_table_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = demo._result({"TLM": arm(0.6), "task only": arm(0.5)}, [], Path("m"), Path("t"), Path("c"), 300.0)
    assert result["arms"]["TLM"]["mean"]["test"]["macro_f1"] == 0.6
    assert result["arms"]["task only"]["seeds"][0]["test"] == {"macro_f1": 0.5, "accuracy": 0.5}
    assert result["majority"] == {"macro_f1": 0.1, "accuracy": 0.3}
    assert (result["task"], result["corpus"], result["data"]) == ("t", "c", None)


def test_a_demo_beside_a_running_one_says_so_and_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = StackFolder(demo.FOLDER / "stack")
    folder.create()
    with folder.locked():
        assert demo.main([]) == 1
    assert "tlm down --data-dir" in capsys.readouterr().err
    assert folder.logs.is_dir()


def test_a_task_that_is_not_there_fails_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--task", "missing", "--corpus", "missing"]) == 1
    assert "missing" in capsys.readouterr().err
    assert not (tmp_path / "build" / "demo" / "stack").exists()
