"""A `train` job over HTTP: from data to a model, over killed workers, the cache and both indexes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.stack import STEPS, Stack, make_spec, run_stack
from tests.support import wait_for
from tlm_core.artifacts import sha256_file
from tlm_core.evaluation.summary import headline
from tlm_core.serving import load_model
from tlm_core.tasks.metrics import score
from tlm_core.wire import Job, Predictions

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def running(embedded: Stack) -> tuple[Job, int, Predictions]:
    """A job whose worker was killed once, the step of the checkpoint before that, and its answer at that time."""
    job = embedded.client.submit(make_spec())
    step = embedded.kill_worker(job.id)
    return job, step, embedded.client.predict(job.id, ["rain and thunder", "the old ship", "butter with flour"])


@pytest.fixture(scope="module")
def killed(embedded: Stack, running: tuple[Job, int, Predictions]) -> tuple[Job, int]:
    """The finished job whose worker was killed once, and the step of the checkpoint before that."""
    return embedded.client.wait(running[0].id), running[1]


def test_linear_model_answers_before_the_job_ends(running: tuple[Job, int, Predictions]) -> None:
    answer = running[2]
    assert (answer.model.name, answer.model.final) == ("linear", False)
    assert [prediction.label for prediction in answer.data] == ["weather", "harbour", "kitchen"]


def test_job_with_killed_worker_resumes_from_its_checkpoint(embedded: Stack, killed: tuple[Job, int]) -> None:
    job, step = killed
    assert (job.state, job.attempt) == ("succeeded", 2)
    (resumed,) = embedded.events(job.id, "stage.resumed")
    assert (resumed.attempt, resumed.data["node"]) == (2, "joint.s0")
    assert resumed.data["step"] >= step > 0
    points = embedded.client.metrics(job.id)
    steps = [point["step"] for point in points if point["attempt"] == 2 and point["node"] == "joint.s0"]
    assert min(steps) > resumed.data["step"], "no step runs twice"
    assert max(steps) > STEPS / 2
    # Points have an interval of half a second, so the series ends within about one interval of the last step.
    assert STEPS - max(steps) <= 2 * np.diff(steps).max()


def test_downloaded_model_scores_what_the_report_says(
    embedded: Stack, killed: tuple[Job, int], data: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    job, _ = killed
    embedded.client.download(job.id, tmp_path)
    for file in embedded.client.model(job.id).files:
        assert sha256_file(tmp_path / file.name) == file.sha256
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows]
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    predicted = model(**encoded).logits.argmax(-1).numpy()
    labels = np.array([model.config.label2id[row["label"]] for row in rows])
    scores = score(labels, predicted, 3, "macro_f1")
    report = embedded.client.report(job.id)
    (reported,) = report["seeds"]
    encoder = reported["models"]["encoder"]["test"]
    assert scores["macro_f1"] == pytest.approx(encoder["macro_f1"], abs=1e-4)
    assert scores["accuracy"] == pytest.approx(encoder["accuracy"], abs=1e-4)
    assert encoder["macro_f1"] > 0.5, "the task can be learned"
    returned = load_model(tmp_path)
    predicted = returned.probabilities(texts).argmax(1)
    assert score(labels, predicted, 3, "macro_f1")["macro_f1"] == pytest.approx(reported["test"]["macro_f1"], abs=1e-4)
    assert headline(report).endswith(f"macro-F1 {reported['test']['macro_f1']:.4f} on test.")
    served = [prediction.label for prediction in embedded.client.predict(job.id, texts[:20]).data]
    assert served == [returned.labels[label] for label in predicted[:20]]
    confidence = returned.probabilities(texts[:20]).max(1)
    least = float(np.median(confidence))
    answered = embedded.client.predict(job.id, texts[:20], min_confidence=least).data
    assert [prediction.abstained for prediction in answered] == (confidence < least).tolist()


def test_equal_request_reuses_every_stage(embedded: Stack, killed: tuple[Job, int]) -> None:
    start = time.monotonic()
    job = embedded.finish(make_spec())
    assert job.state == "succeeded"
    assert embedded.events(job.id, "workers.submitted") == []
    assert embedded.client.report(job.id) == embedded.client.report(killed[0].id)
    assert time.monotonic() - start < 20


def test_cancelled_job_leaves_no_worker(embedded: Stack) -> None:
    job = embedded.client.submit(make_spec(seeds=(7,)))
    wait_for(embedded.workers, 120)
    embedded.client.cancel(job.id)
    assert embedded.client.wait(job.id).state == "cancelled"
    embedded.wait_for_no_worker()


@pytest.mark.opensearch
def test_opensearch_and_embedded_index_give_the_same_model(
    embedded: Stack, killed: tuple[Job, int], data: Path, opensearch_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with run_stack(tmp_path_factory.mktemp("opensearch") / "data", data, opensearch_url) as stack:
        job = stack.finish(make_spec())
        assert (job.state, job.attempt) == ("succeeded", 1)
        assert stack.selected(job.id) == embedded.selected(killed[0].id)
        # One run was killed and resumed, the other never stopped: the weights are equal bit for bit.
        assert stack.weights(job.id) == embedded.weights(killed[0].id)
