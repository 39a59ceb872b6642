"""Finished jobs on the Hugging Face hub and in MLflow, over stubs of their libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.contract.filled_dashboard import Contents
from tests.contract.gateway import TOKEN, Gateway
from tlm_client.cli import app
from tlm_client.client import TLMClient
from tlm_core.wire import Series


class Hub:
    """Keeps the paths of the uploaded files."""

    def __init__(self) -> None:
        self.private: bool | None = None
        self.files: set[str] = set()
        self.refusal: Exception | None = None

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        if self.refusal:
            raise self.refusal
        self.private = private
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, path_in_repo: str = "", **patterns: list[str]) -> None:
        from huggingface_hub.utils import filter_repo_objects

        assert repo_id == "owner/tickets"
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        self.files |= {f"{path_in_repo}/{name}".strip("/") for name in filter_repo_objects(names, **patterns)}


class Run(ModuleType):
    """Keeps what is logged, like the module mlflow."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.experiment, self.params, self.metrics, self.files = "", {}, {}, set()
        self.entities = SimpleNamespace(Metric=lambda *values: values)
        self.exceptions = SimpleNamespace(MlflowException=KeyError)
        self.MlflowClient = lambda: self

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    @contextmanager
    def start_run(self, run_name: str, tags: dict[str, str]) -> Iterator[Any]:
        self.name, self.tags = run_name, tags
        yield SimpleNamespace(info=SimpleNamespace(run_id="run1"))

    def log_params(self, params: dict[str, str]) -> None:
        self.params |= params

    def log_batch(self, run_id: str, metrics: list[tuple[str, float, int, int]]) -> None:
        assert run_id == "run1" and len(metrics) <= 1_000
        for name, value, _, step in metrics:
            self.metrics.setdefault(name, []).append((step, value))

    def log_artifacts(self, folder: str, path: str) -> None:
        assert path == "model"
        self.files = {file.name for file in Path(folder).rglob("*")}


def tlm(gateway: Gateway, *words: str) -> Any:
    with gateway.served() as url:
        return CliRunner().invoke(app, words, env={"TLM_URL": url, "TLM_TOKEN": TOKEN})


def test_push_uploads_encoder_and_returned_model(
    filled: tuple[Gateway, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, contents = filled
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    result = tlm(gateway, "push", contents.jobs["succeeded"], "owner/tickets")
    assert (result.exit_code, result.stdout.strip()) == (0, "https://huggingface.co/owner/tickets"), result.output
    assert hub.private is True
    assert {"config.json", "tokenizer.json", "onnx/model.onnx", "onnx/labels.json"} <= hub.files
    assert "model.onnx" not in hub.files and "labels.json" not in hub.files
    hub.refusal = ValueError("no such owner")
    result = tlm(gateway, "push", contents.jobs["succeeded"], "owner/tickets")
    assert result.exit_code == 3 and "no such owner" in result.output and "HF_TOKEN" in result.output


def test_mlflow_run_has_recipe_scores_curves_and_model(
    filled: tuple[Gateway, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, contents = filled
    run = Run()
    monkeypatch.setitem(sys.modules, "mlflow", run)
    now = datetime.now(UTC)
    curve = Series(
        node="joint.s0", name="mlm", total=3, steps=(0.0, 1.0, 2.0), at=(now, now, now), values=(9.0, 8.0, 7.0)
    )
    monkeypatch.setattr(TLMClient, "series", lambda *_: [curve])
    result = tlm(gateway, "mlflow", contents.jobs["succeeded"], "--experiment", "tickets", "--model")
    assert result.exit_code == 0 and "run1" in result.output, result.output
    assert (run.experiment, run.tags["job"]) == ("tickets", contents.jobs["succeeded"])
    assert (run.params["scale"], run.params["recipe.finetune.epochs"]) == ('"tiny"', "10.0")
    assert run.metrics["test.macro_f1"][0][0] == 0 and run.metrics["cost.seconds"] == [(0, 294.7)]
    assert run.metrics["joint.s0.mlm"] == [(step, 9.0 - step) for step in range(3)]
    assert {"model.onnx", "labels.json"} <= run.files


def test_missing_library_names_what_to_install(
    filled: tuple[Gateway, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, contents = filled
    for command, library, extra in (("mlflow", "mlflow", "mlflow"), ("push", "huggingface_hub", "service")):
        monkeypatch.setitem(sys.modules, library, None)
        words = [command, contents.jobs["succeeded"], *(["owner/tickets"] if command == "push" else [])]
        result = tlm(gateway, *words)
        assert result.exit_code == 1 and f"pip install '.[{extra}]'" in result.output, result.output


def test_unfinished_job_has_no_model_to_push(filled: tuple[Gateway, Contents], monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, contents = filled
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert tlm(gateway, "push", contents.jobs["running"], "owner/tickets").exit_code != 0
