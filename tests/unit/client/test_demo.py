"""The demo compares fairly, prints the measured result, and reports problems early."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.client.gateway import job_view, report
from tlm_client import demo
from tlm_client.display import Display
from tlm_client.stack.folder import StackFolder
from tlm_core.errors import InvalidRequest, TLMError
from tlm_core.training.recipe import resolve
from tlm_core.wire import Job, JobEvent, Predictions


def arm(mean: float, returned: str = "encoder", **over: Any) -> demo.Arm:
    scores = {"macro_f1": mean, "micro_f1": mean, "accuracy": mean}
    test = {"test": scores, "validation": scores}
    cost = {"joint": {"flops": 2e12, "seconds": 30.0}}
    seeds = [{"seed": 0, "test": {**scores, "rows": 1050}, "validation": scores, "cost": cost}]
    content = {
        **report(),
        "mean": test,
        "spread": {"test": dict.fromkeys(scores, 0.01)},
        "seeds": seeds,
        "best_seed": 0,
        "returned": {
            "model": returned,
            "seeds": [0, 1, 2],
            "reason": "It has the lowest loss on validation (0.7000).",
            "scores": {"test": _scored(mean)["mean"]["test"]},
        },
        "models": {
            "linear": _scored(0.3),
            "encoder": _scored(mean),
            "ensemble": _scored(mean + 0.02),
            "combined": _scored(mean + 0.05),
        },
    }
    return demo.Arm(Job.model_validate(job_view(state="succeeded")), {**content, **over})


def _scored(mean: float) -> dict[str, Any]:
    scores = {"macro_f1": mean, "accuracy": mean}
    return {"mean": {"test": scores}, "spread": {"test": dict.fromkeys(scores, 0.01)}}


def test_arms_share_the_encoder_and_the_finetuning() -> None:
    tlm, alone = (
        resolve(spec.recipe, spec.scale, spec.overrides) for spec in (demo.ARMS["TLM"], demo.ARMS["task only"])
    )
    assert (tlm.model, tlm.finetune, tlm.tokenizer, tlm.precision) == (
        alone.model, alone.finetune, alone.tokenizer, alone.precision
    )  # fmt: skip
    assert tlm.joint.enabled and not alone.joint.enabled
    assert tlm.selection.selector == "bm25" and alone.selection.selector == "none"
    assert demo.ARMS["task only"].seeds == demo.ARMS["TLM"].seeds[:1]
    assert len(demo.ARMS["TLM"].seeds) == 3
    assert not demo.ARMS["TLM"].overrides


def test_comparison_shows_the_measured_scores(capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"baseline": (0.0, 3.0), "prepare": (0.0, 5.0), "joint": (2e13, 100.0), "finetune": (5e12, 32.0)}
    cost = {"cost": {name: {"flops": flops, "seconds": seconds} for name, (flops, seconds) in stages.items()}}
    cost["cost"]["total"] = {"flops": 2.5e13, "seconds": 140.0}
    demo._print_comparison({"TLM": arm(0.4, "combined", **cost), "task only": arm(0.5, **cost)})
    out = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert list(rows) == [
        "majority", "linear", "task only, seed 0", "TLM, seed 0", "TLM, mean of 3 seeds", "TLM, 3 seeds averaged",
        "combined (returned)",
    ]  # fmt: skip
    mean, first = rows["TLM, mean of 3 seeds"], rows["TLM, seed 0"]
    assert "0.400 ± 0.010" in mean and "137" in mean and "2.5e+13" in mean
    assert "0.400 " in first and "67" in first and "7.0e+12" in first
    assert "0.500 ± 0.010" in rows["task only, seed 0"] and "0.450 ± 0.010" in rows["combined (returned)"]
    assert "0.100" in rows["majority"] and "0.300 ± 0.010" in rows["linear"]
    words = "the mean of the encoders of seeds 0, 1, 2 combined with the linear model"
    assert f"model.onnx is {words}: macro-F1 0.4000 on test." in out
    assert "1,050 test rows" in out


@pytest.mark.parametrize(("name", "seconds"), [("linear", "3"), ("self-trained", "8")])
def test_comparison_charges_linear_models_for_no_encoder(
    name: str, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"baseline": 3.0, "self_train": 5.0, "total": 140.0}
    cost = {stage: {"flops": 2.5e13 if stage == "total" else 0.0, "seconds": of} for stage, of in stages.items()}
    tlm = arm(0.4, name.replace("-", "_"), cost=cost)
    models = {"self_trained": _scored(0.35), **tlm.report["models"]}
    tlm = demo.Arm(tlm.job, {**tlm.report, "models": models})
    demo._print_comparison({"TLM": tlm, "task only": arm(0.5, cost=cost)})
    row = next(line for line in capsys.readouterr().out.splitlines() if f"{name} (returned)" in line)
    assert [cell.strip() for cell in row.split("│")[4:6]] == [seconds, "–"]


def test_conclusion_compares_the_returned_model_with_the_linear_model() -> None:
    gain = {"value": 0.01, "low": -0.005, "high": 0.028, "error": 0.01}
    conclusion = demo._conclusion(arm(0.4, "self_trained", gain=gain).report)
    assert conclusion == (
        "Conclusion: the demo returns the self-trained linear model. "
        "It is not distinguishable from the linear model on test: +0.010 in macro-F1 (95 % interval -0.005 to +0.028)."
    )
    clear = demo._conclusion(arm(0.4, "self_trained", gain={**gain, "low": 0.005}).report)
    assert "It is better than the linear model on test: +0.010" in clear
    reason = "It has the lowest loss on validation (0.7000)."
    assert demo._conclusion(arm(0.4, "linear").report) == f"Conclusion: the demo returns the linear model. {reason}"


def test_plan_states_the_data_and_the_space_of_the_set_up() -> None:
    assert "Prepare a task and a corpus, generated from" in demo._plan(None, None)
    plan = demo._plan(Path("own.csv"), Path("texts"))
    assert "Prepare own.csv and texts.\n" in plan and "6.5 GB" in plan


def test_hint_at_the_end_names_the_data_folder_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / "a folder")
    *_, hint, conclusion = demo._ending(arm(0.4, "linear").report, Path("model"), 300.0).splitlines()
    command = hint.removeprefix("Continue with: ").partition(";")[0]
    shown = subprocess.run(["sh", "-c", f'{command}; printf %s "$TLM_DATA_DIR"'], capture_output=True, text=True)
    assert shown.stdout == str(tmp_path / "a folder" / "build" / "demo" / "stack")
    assert conclusion.startswith("Conclusion: ")


def test_wrong_sample_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    samples = [("first", "ray", "ray"), ("second", "ray", "torch")]
    demo._print_predictions(
        [{"text": text, "label": label, "probability": 0.5, "true_label": true} for text, label, true in samples]
    )
    out = capsys.readouterr().out
    assert "1 of 2 labels are right" in " ".join(out.split())
    assert ["wrong" in line for line in out.splitlines() if "0.50" in line] == [False, True]


def test_samples_are_longest_test_texts_and_linear_model_answers_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"text {number}", "label": "xyz"[number % 3]} for number in range(30)]  # two lengths
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row) for row in rows[:: -1 if split == "test" else 1]]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    samples = demo._samples({split: tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")})
    assert [(sample.text, sample.label) for sample in samples] == [("text 29", "z"), ("text 28", "y"), ("text 27", "x")]

    class Client:
        def __init__(self, *nodes: str) -> None:
            self.nodes, self.waited = nodes, list[str]()

        def events(self, _: str) -> Iterator[JobEvent]:
            for node in self.nodes:
                self.waited.append(node)
                yield JobEvent(type="artifact.published", data={"node": node})

        def job(self, _: str) -> Job:
            return Job.model_validate(job_view(state="failed", error={"code": "bad_data", "message": "No rows."}))

        def predict(self, _: str, texts: list[str], pairs: list[str] | None) -> Predictions:
            assert pairs is None
            answers = [{"label": "z", "probability": 0.5} for _ in texts]
            return Predictions.model_validate({"data": answers, "model": {"name": "linear", "final": False}})

    client, job = Client("validate", "baseline", "prepare"), Job.model_validate(job_view())
    with Display(Console(width=200)) as display:
        demo._answer_early(client, job, samples, display, 0.0)  # type: ignore[arg-type]
        assert client.waited == ["validate", "baseline"]
        with pytest.raises(TLMError, match="No rows"):
            demo._answer_early(Client("validate"), job, samples, display, 0.0)  # type: ignore[arg-type]
    assert "1 of 3 labels are right" in capsys.readouterr().out


def test_regression_task_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    rows = (json.dumps({"text": f"text {number}", "label": number / 7}) for number in range(60))
    file.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(InvalidRequest, match="dataset with labels"):
        demo._samples({"file": file})


def test_result_contains_the_scores_of_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = demo._result({"TLM": arm(0.6), "task only": arm(0.5)}, Path("t"), Path("c"))
    result: dict[str, Any] = json.loads(json.dumps(content))
    tlm, alone = (result["arms"][name]["report"] for name in ("TLM", "task only"))
    assert tlm["mean"]["test"]["macro_f1"] == 0.6 and tlm["majority"]["test"]["macro_f1"] == 0.1
    assert alone["seeds"][0]["test"]["accuracy"] == 0.5
    assert (result["task"], result["corpus"], result["data"]) == ("t", "c", None)


def test_second_demo_reports_the_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = StackFolder(demo.FOLDER / "stack")
    folder.create()
    with folder.locked():
        assert demo.main([]) == 1
    assert "tlm down --data-dir" in capsys.readouterr().err
    assert folder.logs.is_dir()


def test_missing_task_fails_before_the_stack_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--task", "missing", "--corpus", "missing"]) == 1
    assert "missing" in capsys.readouterr().err
    assert not (tmp_path / "build" / "demo" / "stack").exists()
