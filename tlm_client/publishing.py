"""Upload the model of a finished job to the Hugging Face hub, and log the figures of a job to MLflow."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tlm_client.client import TLMClient
from tlm_client.transfer import JOB_MARK
from tlm_core.errors import MissingDependency, NotReady, Unavailable
from tlm_core.training.recipe import leaves
from tlm_core.wire import JsonObject

_SERVED = ["model.onnx", "labels.json", "ngrams.json", "report.json"]
_METRICS_AT_ONCE = 1_000  # maximum that MLflow accepts in a request

Point = tuple[str, float, int]  # name, value, step


def push_to_hub(client: TLMClient, job_id: str, repository: str, *, private: bool) -> str:
    """Upload the model of a job to a repository of the hub, and return the repository's URL.

    The encoder is at the top of the repository, so that stock classes can load it. The returned model is in `onnx/`.
    The library huggingface_hub reads the hub's token, for example from HF_TOKEN. Raises NotReady, NotFound,
    Unavailable or MissingDependency.
    """
    hub = _library("huggingface_hub", "service")
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as name:
        folder = _download(client, job_id, Path(name))
        top = folder / "model" if (folder / "model").is_dir() else folder  # a linear model has no encoder
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=top, ignore_patterns=_SERVED)
            api.upload_folder(repo_id=repository, folder_path=folder, path_in_repo="onnx", allow_patterns=_SERVED)
        except (hub.errors.HTTPError, OSError, ValueError) as error:
            raise Unavailable(
                f"Cannot upload to '{repository}' ({error}). Check the repository, HF_TOKEN and network."
            ) from error
    return str(address)


def log_to_mlflow(client: TLMClient, job_id: str, *, experiment: str, model: bool) -> str:
    """Log recipe, scores, costs and curves of a job as a run of MLflow, and return the run's id.

    model: also log the files of the model. MLFLOW_TRACKING_URI names the server. Raises NotReady, NotFound,
    Unavailable or MissingDependency.
    """
    mlflow = _library("mlflow", "mlflow")
    job = client.job(job_id)
    points = [*_scores(client.report(job_id)), *_curves(client, job_id)]
    now = round(time.time() * 1_000)
    metrics = [mlflow.entities.Metric(name, value, now, step) for name, value, step in points]
    parameters = leaves(job.spec.model_dump(mode="json", exclude={"overrides", "metadata", "options"}))
    parameters |= leaves(job.resolved_recipe.model_dump(mode="json"), "recipe.")
    try:
        mlflow.set_experiment(experiment)
        with mlflow.start_run(run_name=job.name or job.id, tags={"job": job.id, **job.spec.metadata}) as run:
            mlflow.log_params({key: json.dumps(value) for key, value in parameters.items()})
            for start in range(0, len(metrics), _METRICS_AT_ONCE):
                mlflow.MlflowClient().log_batch(run.info.run_id, metrics[start : start + _METRICS_AT_ONCE])
            if model:
                with tempfile.TemporaryDirectory() as name:
                    mlflow.log_artifacts(str(_download(client, job_id, Path(name))), "model")
    except mlflow.exceptions.MlflowException as error:
        raise Unavailable(
            f"MLflow did not accept the run ({error.message}). Check MLFLOW_TRACKING_URI and the MLflow server."
        ) from error
    return str(run.info.run_id)


def _scores(report: JsonObject) -> Iterator[Point]:
    """Yield the mean scores as `SPLIT.SCORE`, and the total costs as `cost.QUANTITY`."""
    for split, scores in report.get("mean", {}).items():
        yield from ((f"{split}.{name}", value, 0) for name, value in scores.items() if value is not None)
    yield from ((f"cost.{name}", value, 0) for name, value in report.get("cost", {}).get("total", {}).items())


def _curves(client: TLMClient, job_id: str) -> Iterator[Point]:
    for series in client.series(job_id):
        steps = map(int, series.steps)
        yield from ((f"{series.node}.{series.name}", v, step) for step, v in zip(steps, series.values, strict=True))


def _download(client: TLMClient, job_id: str, folder: Path) -> Path:
    if not client.model(job_id).final:
        raise NotReady(f"Job {job_id} has no final model. Wait until it succeeds, or retry it if it failed.")
    client.download(job_id, folder)
    (folder / JOB_MARK).unlink(missing_ok=True)
    return folder


def _library(name: str, extra: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        needed = f"This command needs the package {name}. Run `pip install '.[{extra}]'` in a checkout."
        raise MissingDependency(needed) from error
