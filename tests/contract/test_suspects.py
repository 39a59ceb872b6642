"""Suspect labels over HTTP and on the dashboard."""

from __future__ import annotations

import re
from html import unescape

from fastapi.testclient import TestClient

from services.api.dashboard.present import least
from tests.contract.dashboard_pages import Tags, signed_in
from tests.contract.filled_dashboard import LABELS, SEEDS, Contents, make_report
from tests.contract.gateway import AUTH, Gateway
from tests.contract.job_results import complete
from tests.factories import make_resolved, make_spec

T = "default"


def cells_of(page: str) -> str:
    """Return the words of a page, with a space between cells."""
    return " ".join(unescape(re.sub("<[^>]*>", " ", page)).split())


def test_suspects_have_their_texts_in_the_order_of_the_report(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    address = f"/v1/jobs/{contents.jobs['succeeded']}/suspects"
    answer = signed_in(gateway).get(address, headers=AUTH).json()
    assert (answer["total"], answer["neighbors"]) == (7, False)
    assert [(row["split"], row["row"]) for row in answer["data"]] == [
        *(("train", row) for row in (3, 2, 1)),
        ("validation", 999),
    ]
    assert all(row["label"] == LABELS[0] and row["suggested"] == LABELS[1] for row in answer["data"])
    texts = [row["text"] for row in answer["data"]]
    assert len(set(texts[:3])) == 3 and all(texts[:3])
    assert texts[3] is None  # validation has 90 rows
    assert len(signed_in(gateway).get(f"{address}?limit=2", headers=AUTH).json()["data"]) == 2


def test_unfinished_job_returns_its_state(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    assert browser.get(f"/v1/jobs/{contents.jobs['running']}/suspects", headers=AUTH).status_code == 409
    assert browser.get(f"/v1/jobs/{contents.jobs['cancelled']}/suspects", headers=AUTH).status_code == 404


def test_report_without_a_ranking_is_not_found(api: TestClient, gateway: Gateway) -> None:
    gateway.parts.jobs.submit(T, make_spec(), make_resolved())
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root)
    answer = api.get(f"/v1/jobs/{job.id}/suspects")
    assert answer.status_code == 404 and "has no ranking" in answer.json()["detail"]


def test_labels_page_shows_texts_suggestions_and_ngrams(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, job = signed_in(gateway), contents.jobs["succeeded"]
    results = browser.get(f"/ui/jobs/{job}/results")
    assert Tags(results.text).has("a", href=f"/ui/jobs/{job}/labels")
    text = browser.get(f"/ui/jobs/{job}/labels").text
    words = cells_of(text)
    first = browser.get(f"/v1/jobs/{job}/suspects", headers=AUTH).json()["data"][0]
    assert f"train 3 {LABELS[0]} {LABELS[1]} 0.930 {first['text']}" in words
    assert "validation 999" in words and "not available" in words and "4 of 7 rows" in words
    assert all(f"{label} {label} my parcel" in words for label in LABELS)
    assert Tags(text).has("a", href=f"/ui/datasets/{contents.dataset}#files")


def test_results_page_shows_calibration_and_errors_by_confidence(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    text = signed_in(gateway).get(f"/ui/jobs/{contents.jobs['succeeded']}/results").text
    words = cells_of(text)
    report, _ = make_report(LABELS, SEEDS, 0.8)
    error, points = report["calibration"]["test"], report["risk_coverage"]["test"]["points"]
    assert f"Calibration error {error['error']:.3f}" in words
    assert f"{least(points[-1]['threshold'])} 100.0 % {100 * points[-1]['risk']:.1f} %" in words
