"""Datasets over HTTP: stored completely or not at all, and each data error is reported."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import zstandard
from fastapi.testclient import TestClient

from services.api.intake import changed_options
from services.common.catalog import Catalog
from services.common.catalog_records import DatasetRecord
from tests.contract.gateway import AUTH, TRAIN, Gateway, make_gateway, upload, upload_in_one_part
from tests.factories import make_resolved, make_spec
from tests.support import wait_for
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import StoreUnavailable
from tlm_core.tasks.hub import HubSource
from tlm_core.tasks.options import DatasetOptions

T = "default"


def test_uploaded_dataset_is_validated_and_stored(api: TestClient, gateway: Gateway) -> None:
    answer = upload(api, options='{"label_column": "label"}')
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert dataset["report"]["ok"]
    assert (dataset["version"], dataset["labels"], dataset["options"]["label_column"]) == (1, 2, "label")
    again = api.get(f"/v1/datasets/{dataset['id']}").json()
    assert again == api.get("/v1/datasets/toy").json() == {k: v for k, v in dataset.items() if k != "report"}
    assert api.get("/v1/datasets/toy/report").json() == dataset["report"]
    assert len(api.get("/v1/datasets/toy/preview").json()["data"]) == 5
    (file,) = api.get("/v1/datasets/toy/files").json()["data"]
    got = api.get(f"/v1/datasets/toy/files/{file['name']}")
    assert (file["name"], got.text, got.headers["x-checksum-sha256"]) == ("train.csv", TRAIN, file["sha256"])
    assert not [name for name in gateway.leftovers() if name.startswith("scratch")]


def test_equal_files_have_equal_digests(api: TestClient) -> None:
    first, second = upload(api).json(), upload(api).json()
    assert (first["version"], second["version"]) == (1, 2)
    assert first["digest"] == second["digest"]
    assert first["id"] != second["id"]
    assert upload(api, train=TRAIN + "more,pos\n").json()["digest"] != first["digest"]


def test_splits_and_packed_files_are_accepted(api: TestClient, gateway: Gateway) -> None:
    lines = "".join(json.dumps({"text": f"t {n} {split}", "label": n % 2}) + "\n" for n in range(20) for split in "a")
    files = {
        "train": ("My Data (final).jsonl.gz", gzip.compress(lines.encode())),
        "test": ("T.TSV.zst", zstandard.compress(b"text\tlabel\nx y\t0\nz w\t1\n")),
    }
    answer = api.post("/v1/datasets", data={"name": "two"}, files=files)
    assert answer.status_code == 201, answer.text
    record = gateway.parts.catalog.dataset(T, "two")
    assert [f.name for f in gateway.parts.artifacts.manifest(record.raw).files] == ["test.tsv.zst", "train.jsonl.gz"]


def test_additional_test_sets_require_test(api: TestClient) -> None:
    rows = {name: TRAIN.replace("film", name) for name in ("train", "test", "test_other")}
    files = {name: (f"{name}.csv", text) for name, text in rows.items()}
    whole = api.post("/v1/datasets", data={"name": "whole"}, files=files)
    assert whole.status_code == 201, whole.text
    assert whole.json()["rows"] == {"train": 36, "validation": 4, "test": 40, "test_other": 40}
    named = {name: upload_in_one_part(api, f"{name}.csv", text.encode()) for name, text in rows.items()}
    parts = api.post("/v1/datasets/from-uploads", json={"name": "parts", "files": named})
    assert (parts.status_code, parts.json()["digest"]) == (201, whole.json()["digest"])
    del files["test"]
    alone = api.post("/v1/datasets", data={"name": "alone"}, files=files)
    assert alone.status_code == 422
    assert alone.json()["detail"] == "The additional test set 'test_other' requires a test set. Send 'test' as well."


def test_dataset_may_include_a_selection(api: TestClient, gateway: Gateway) -> None:
    chosen = {"train": ("t.csv", TRAIN), "selection": ("external.csv", "text,id,rank\nb,1,2\na,2,1\n")}
    dataset = api.post("/v1/datasets", data={"name": "brings"}, files=chosen).json()
    assert (dataset["selection"], dataset["rows"]["train"] > 0) == (2, True)
    assert [f["name"] for f in api.get("/v1/datasets/brings/files").json()["data"]] == ["selection.csv", "train.csv"]
    body = {"dataset": "brings", "overrides": {"selection.selector": "given"}}
    job = api.post("/v1/jobs", json=body)
    assert job.status_code == 202, job.text
    assert [stage["name"] for stage in job.json()["stages"]][:4] == ["validate", "baseline", "select", "self_train"]
    both = api.post("/v1/jobs", json={**body, "corpus": "docs"})
    assert both.status_code == 422 and "Omit 'corpus'" in both.json()["detail"]
    others = {"kind": "share_tickets", "options": {"others": ["toy"]}}
    kind = api.post("/v1/jobs", json={**body, **others})
    assert kind.status_code == 422 and "cannot use a selection" in kind.json()["detail"], kind.text
    guess = api.post("/v1/jobs/estimate", json=body).json()
    assert (guess["passages"], guess["passages_at_most"]) == (2, 2)
    assert upload(api).json()["selection"] is None
    without = api.post("/v1/jobs", json={**body, "dataset": "toy"})
    assert without.status_code == 422 and "has no selection file" in without.json()["detail"]
    assert not [name for name in gateway.leftovers() if name.startswith("scratch")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", "text,rank\na,best\n", "Row 1 of selection.csv: invalid rank 'best'"),
        ("s.json", "[]", "csv, tsv, jsonl or parquet"),
    ],
)
def test_invalid_selection_is_refused_and_not_stored(
    api: TestClient, gateway: Gateway, name: str, content: str, message: str
) -> None:
    answer = api.post(
        "/v1/datasets", data={"name": "x"}, files={"train": ("t.csv", TRAIN), "selection": (name, content)}
    )
    assert answer.status_code == 422 and message in answer.json()["detail"], answer.text
    assert gateway.leftovers() == []


INVALID = {
    "empty": "",
    "header only": "text,label\n",
    "one class": "text,label\n" + "".join(f"film {n},pos\n" for n in range(20)),
    "blank and null": TRAIN + " ,pos\nx,\n",
    "doubled column": "text,text,label\na,b,pos\n",
}


@pytest.mark.parametrize("train", INVALID.values(), ids=INVALID.keys())
def test_invalid_dataset_is_refused_with_every_error(api: TestClient, gateway: Gateway, train: str) -> None:
    answer = upload(api, train=train)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_dataset"
    assert all({"code", "message", "split", "row", "column"} == set(fault) for fault in problem["errors"])
    assert gateway.leftovers() == []
    assert api.get("/v1/datasets").json() == {"data": [], "has_more": False}


def both_uploads(api: TestClient, name: str, text: str) -> list[Any]:
    """Post a dataset of one file as a form and in parts, and return both responses."""
    body = {"name": "toy", "files": {"file": upload_in_one_part(api, name, text.encode())}}
    return [
        api.post("/v1/datasets", data={"name": "toy"}, files={"file": (name, text)}),
        api.post("/v1/datasets/from-uploads", json=body),
    ]


def test_errors_cite_the_name_of_the_uploaded_file(api: TestClient) -> None:
    for answer in both_uploads(api, "mine.csv", TRAIN + "x\n"):
        assert "Row 41 of mine.csv (split train) has 1 field, but" in answer.json()["detail"]
    for answer in both_uploads(api, "mine.tsv", "no,yes\tlabel\n" + TRAIN.partition("\n")[2].replace(",", "\t")):
        assert answer.status_code == 201, answer.text
    for answer in both_uploads(api, "mine.csv", TRAIN.replace("text", "[text]")):
        assert answer.status_code == 201, answer.text


def test_errors_have_row_and_column(api: TestClient) -> None:
    problem = upload(api, train=TRAIN + " ,pos\nx,\n").json()
    assert {(f["row"], f["column"]) for f in problem["errors"]} == {(41, "text"), (42, "label")}


@pytest.mark.parametrize(
    ("data", "files", "message"),
    [
        ({}, {"train": ("a.csv", TRAIN)}, "The form field 'name' is required"),
        ({"name": "a/b"}, {"train": ("a.csv", TRAIN)}, "Invalid name 'a/b'"),
        ({"name": "ds_1"}, {"train": ("a.csv", TRAIN)}, "Names cannot begin with 'ds_'"),
        ({"name": "x", "nmae": "y"}, {"train": ("a.csv", TRAIN)}, "The form has no text field 'nmae'"),
        ({"name": "x"}, {"trian": ("a.csv", TRAIN)}, "file fields: file, selection, test, test_NAME, "),
        ({"name": "x"}, {"test": ("a.csv", TRAIN)}, "no training data"),
        ({"name": "x"}, {"train": ("a.csv", TRAIN), "file": ("b.csv", TRAIN)}, "'file' alone"),
        ({"name": "x"}, {"train": ("a.xlsx", TRAIN)}, "Unknown file type of"),
        ({"name": "x"}, {"train": ("noending", TRAIN)}, "Unknown file type of"),
        ({"name": "x", "options": "{"}, {"train": ("a.csv", TRAIN)}, "options"),
        (
            {"name": "x", "options": '{"txt": 1}'},
            {"train": ("a.csv", TRAIN)},
            "/txt: is not a known field. Valid fields: ",
        ),
        ({"name": "x", "options": '{"text_column": [1]}'}, {"train": ("a.csv", TRAIN)}, "must be a valid string"),
        ({"name": "x", "options": '{"delimiter": "ab"}'}, {"train": ("a.csv", TRAIN)}, "one character"),
        ({"name": "x", "options": "[" * 70 + "]" * 70}, {"train": ("a.csv", TRAIN)}, "nested deeper"),
    ],
)
def test_invalid_dataset_form_is_refused(
    api: TestClient, gateway: Gateway, data: dict[str, str], files: dict[str, Any], message: str
) -> None:
    answer = api.post("/v1/datasets", data=data, files=files)
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["detail"]
    assert gateway.leftovers() == []


def test_body_must_be_multipart(api: TestClient) -> None:
    assert api.post("/v1/datasets", json={"name": "x"}).status_code == 415
    broken = api.post(
        "/v1/datasets", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert broken.status_code == 422
    assert broken.json()["code"] == "invalid_request"


def test_truncated_form_is_refused(api: TestClient, gateway: Gateway) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\ntoy\r\n'
        b'--x\r\nContent-Disposition: form-data; name="train"; filename="train.csv"\r\n\r\n' + TRAIN.encode()
    )
    answer = api.post("/v1/datasets", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 422
    assert "last boundary" in answer.json()["detail"]
    assert gateway.leftovers() == []


def test_broken_connection_leaves_no_files(gateway: Gateway) -> None:
    with gateway.served() as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = (
                "POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                f"Authorization: {AUTH['Authorization']}\r\nContent-Length: 5000000\r\n\r\n"
            )
            part = '--x\r\nContent-Disposition: form-data; name="train"; filename="train.csv"\r\n\r\n'
            connection.sendall(head.encode() + part.encode() + b"x" * 2_000_000)
            wait_for(lambda: any(p.startswith("scratch/uploads") for p in gateway.leftovers()), 5)
        wait_for(lambda: gateway.leftovers() == [], 5)
    assert gateway.parts.catalog.datasets(T) == ([], False)


def test_large_form_to_a_trailing_slash_is_redirected(api: TestClient) -> None:
    large = "x" * 1_100_000
    answer = api.post("/v1/datasets/", files={"train": ("train.csv", large)}, follow_redirects=False)
    assert (answer.status_code, answer.headers.get("location")) == (307, "http://testserver/v1/datasets"), answer.text


def test_upload_above_the_limit_is_refused(redis_client: redis.Redis, tmp_path: Path) -> None:
    gateway = make_gateway(redis_client, tmp_path, max_upload_bytes=2_000)
    with gateway.test_client() as api:
        answer = upload(api, train="x" * 5_000)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

        def chunks() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="train"; filename="t.csv"\r\n\r\n'
            yield b"x" * 5_000

        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert api.post("/v1/datasets", content=chunks(), headers=headers).status_code == 413
    assert gateway.leftovers() == []


class FullDisk(ArtifactStore):
    """A storage that is full after `room` files."""

    room = 0

    def _put(self, source: Path, target: str) -> None:
        if not self.room:
            raise OSError(errno.ENOSPC, f"no space left for {source.name}")
        self.room -= 1
        super()._put(source, target)


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_full_disk_is_reported_and_nothing_stored(gateway: Gateway, room: int) -> None:
    full = FullDisk(gateway.parts.settings.storage, gateway.root / "cache")
    full.room = room
    changed = dataclasses.replace(gateway, parts=dataclasses.replace(gateway.parts, artifacts=full))
    with changed.test_client() as api:
        answer = upload(api)
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert gateway.leftovers() == []
    assert gateway.parts.catalog.datasets(T) == ([], False)


class LostResponse(Catalog):
    """Creates the record, but loses the response of the store."""

    def add_dataset(self, *args: Any, **kwargs: Any) -> DatasetRecord:
        super().add_dataset(*args, **kwargs)
        raise StoreUnavailable("Redis does not answer: Timeout reading from socket")


def test_recorded_dataset_survives_a_lost_store_response(gateway: Gateway) -> None:
    parts = dataclasses.replace(gateway.parts, catalog=LostResponse(gateway.client))
    with dataclasses.replace(gateway, parts=parts).test_client() as api:
        answer = upload(api)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    with gateway.test_client() as api:
        assert api.get("/v1/datasets/toy/report").json()["counts"] == {"train": 32, "validation": 4, "test": 4}


def test_dataset_is_deleted_unless_in_use(api: TestClient, gateway: Gateway) -> None:
    dataset = upload(api).json()
    store = gateway.parts.jobs
    job = store.submit(T, make_spec(), make_resolved(dataset_id=dataset["id"]))[0]
    refused = api.delete("/v1/datasets/toy")
    assert (refused.status_code, refused.json()["facts"]["job"]) == (409, job.id)
    store.cancel(T, job.id)
    assert api.delete("/v1/datasets/toy").status_code == 204
    assert api.get("/v1/datasets/toy").status_code == 404
    assert gateway.leftovers() == []


def test_dataset_list_has_pages(api: TestClient) -> None:
    ids = {upload(api, name=f"d{n}").json()["id"] for n in range(3)}
    first = api.get("/v1/datasets?limit=2").json()
    assert first["has_more"]
    rest = api.get(f"/v1/datasets?limit=2&after={first['data'][-1]['id']}").json()
    assert not rest["has_more"]
    assert {d["id"] for d in first["data"] + rest["data"]} == ids
    assert api.get("/v1/datasets?limit=0").json()["errors"][0]["pointer"] == "/limit"


def test_stored_options_are_those_that_differ() -> None:
    assert changed_options(DatasetOptions(text_pair_column="", split_seed=0)) == {"text_pair_column": ""}


@pytest.mark.parametrize("hub", ["../secrets/x", "/etc/passwd", "a", "tests/contract", ".git/hooks", "a/b/c"])
def test_hub_id_cannot_name_a_local_folder(api: TestClient, hub: str) -> None:
    answer = api.post("/v1/datasets/hub", json={"name": "x", "hub": hub})
    assert answer.status_code == 422
    assert "Invalid hub id" in answer.json()["detail"]


def test_hub_dataset_is_stored_as_texts_and_labels(gateway: Gateway) -> None:
    real = gateway.parts.load_task
    seen: list[Any] = []

    def from_hub(source: Any, options: DatasetOptions) -> Any:
        seen.append(source)
        path = gateway.root / "hub.csv"
        path.write_text(TRAIN)
        return real({"train": path}, options)

    changed = dataclasses.replace(gateway, parts=dataclasses.replace(gateway.parts, load_task=from_hub))
    with changed.test_client() as api:
        answer = api.post("/v1/datasets/hub", json={"name": "films", "hub": "owner/films@main"})
    assert answer.status_code == 201, answer.text
    assert seen == ["hub:owner/films@main"]
    record = gateway.parts.catalog.dataset(T, "films")
    task, _ = real(gateway.parts.artifacts.localize(record.raw), DatasetOptions(**record.options))  # type: ignore[arg-type]
    assert (task.labels, task.name) == (("neg", "pos"), "films")
    assert sum(task.counts.values()) == 40


def test_hub_file_may_be_the_selection(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    real, requests = gateway.parts.load_task, []
    (gateway.root / "hub.csv").write_text(TRAIN)
    (gateway.root / "external.csv").write_text("text,id,rank\nb,1,2\na,2,1\n")

    def fetched(source: HubSource, name: str, *, cache: Path | None = None) -> Path:
        assert cache is not None and cache.is_relative_to(gateway.root)
        requests.append((source, name))
        return gateway.root / "external.csv"

    monkeypatch.setattr("tlm_core.tasks.hub.hub_file", fetched)
    parts = dataclasses.replace(
        gateway.parts, load_task=lambda _, options: real({"train": gateway.root / "hub.csv"}, options)
    )
    body = {"name": "films", "hub": "owner/films@v2", "selection": "small_external.csv"}
    with dataclasses.replace(gateway, parts=parts).test_client() as api:
        accepted = api.post("/v1/datasets/hub", json=body)
        refused = api.post("/v1/datasets/hub", json={**body, "selection": "small_external"})
    assert accepted.status_code == 201 and accepted.json()["selection"] == 2, accepted.text
    assert requests[0] == (HubSource("owner/films", "v2"), "small_external.csv")
    assert refused.status_code == 422 and "Unknown file type of" in refused.json()["detail"]
