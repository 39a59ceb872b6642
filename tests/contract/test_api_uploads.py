"""Uploads in parts: received parts survive interruptions, and only complete files are used."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.contract.gateway import AUTH, TRAIN, Gateway, restarted, upload, upload_in_one_part
from tlm_core.errors import StorageUnavailable, StoreUnavailable

WHOLE = gzip.compress((TRAIN + "".join(f"row {n} {n * 7919 % 1000},pos\n" for n in range(3000))).encode())
SHA = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def api(gateway: Gateway) -> Iterator[TestClient]:
    """A client of a gateway that starts no load."""
    gateway.loads.stop()
    with gateway.test_client() as client:
        yield client


def begin(api: Any, **over: Any) -> str:
    answer = api.post("/v1/uploads", json={"name": "train.csv.gz", "size": len(WHOLE), "sha256": SHA, **over})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def put(api: Any, upload_id: str, first: int, last: int, data: bytes | None = None) -> Any:
    headers = {"Content-Range": f"bytes {first}-{last}/{len(WHOLE)}", "Content-Type": "application/octet-stream"}
    return api.put(
        f"/v1/uploads/{upload_id}", content=WHOLE[first : last + 1] if data is None else data, headers=headers
    )


def send(api: Any, upload_id: str, *, parts: int = 5) -> None:
    edges = [len(WHOLE) * n // parts for n in range(parts + 1)]
    for first, end in pairwise(edges):
        assert put(api, upload_id, first, end - 1).status_code == 200


def test_parts_equal_a_single_upload(api: TestClient, gateway: Gateway) -> None:
    upload_id = begin(api)
    send(api, upload_id)
    assert api.get(f"/v1/uploads/{upload_id}").json()["offset"] == len(WHOLE)
    answer = api.post("/v1/datasets/from-uploads", json={"name": "toy", "files": {"train": upload_id}})
    assert answer.status_code == 201, answer.text
    again = api.post("/v1/datasets", data={"name": "toy"}, files={"train": ("train.csv.gz", WHOLE)}).json()
    assert (answer.json()["digest"], answer.json()["rows"]) == (again["digest"], again["rows"])
    assert api.get(f"/v1/uploads/{upload_id}").status_code == 404, "The upload has ended."
    assert not any("parts/" in name or "uploads/" in name for name in gateway.leftovers())


def test_upload_resumes_after_cuts_and_a_restart(gateway: Gateway) -> None:
    rng, current, rounds = random.Random(0), gateway, 0
    with current.test_client() as api:
        upload_id = begin(api)
    while True:
        current = restarted(current)
        with current.served() as url, httpx.Client(base_url=url, headers=AUTH, timeout=20) as api:
            offset = api.get(f"/v1/uploads/{upload_id}").json()["offset"]
            if offset == len(WHOLE):
                response = api.post("/v1/datasets/from-uploads", json={"name": "toy", "files": {"train": upload_id}})
                break
            last = min(len(WHOLE), offset + len(WHOLE) // 2 + 1) - 1
            rounds += 1
            if rounds % 2:

                def cut(first: int = offset) -> Iterator[bytes]:
                    yield WHOLE[first : first + rng.randrange(last - first)]  # noqa: B023
                    raise ConnectionError("The connection is lost.")

                headers = {"Content-Range": f"bytes {offset}-{last}/{len(WHOLE)}"}
                with pytest.raises(ConnectionError):
                    api.put(f"/v1/uploads/{upload_id}", content=cut(), headers=headers)
            else:
                assert put(api, upload_id, offset, last).status_code == 200
    assert response.status_code == 201, response.text
    assert rounds == 4
    assert (
        response.json()["rows"]["train"] + response.json()["rows"]["validation"] + response.json()["rows"]["test"]
        == 3040
    )


def test_part_at_a_wrong_offset_gets_the_expected_one(api: TestClient) -> None:
    upload_id = begin(api)
    assert put(api, upload_id, 0, 999).status_code == 200
    for first in (0, 500, 2000):
        answer = put(api, upload_id, first, first + 99)
        assert (answer.status_code, answer.json()["facts"]["offset"]) == (409, 1000)
    assert api.post("/v1/datasets/from-uploads", json={"name": "toy", "files": {"train": upload_id}}).status_code == 409


def test_concurrent_equal_parts_are_stored_once(gateway: Gateway) -> None:
    with gateway.served() as url, httpx.Client(base_url=url, headers=AUTH, timeout=20) as api:
        upload_id = begin(api)
        with ThreadPoolExecutor(4) as pool:
            codes = sorted(pool.map(lambda _: put(api, upload_id, 0, 4999).status_code, range(4)))
        assert codes == [200, 409, 409, 409]
        assert put(api, upload_id, 5000, len(WHOLE) - 1).status_code == 200
        assert (
            api.post("/v1/datasets/from-uploads", json={"name": "t", "files": {"train": upload_id}}).status_code == 201
        )


def test_upload_must_match_its_digest(api: TestClient, gateway: Gateway) -> None:
    upload_id = begin(api, sha256="0" * 64)
    send(api, upload_id, parts=2)
    answer = api.post("/v1/datasets/from-uploads", json={"name": "toy", "files": {"train": upload_id}})
    assert (answer.status_code, "SHA-256" in answer.json()["detail"]) == (422, True)
    assert api.get("/v1/datasets").json()["data"] == []
    assert gateway.leftovers() == []


def test_uploads_of_an_invalid_dataset_stay(api: TestClient) -> None:
    upload_id = begin(api)
    send(api, upload_id, parts=1)
    body = {"name": "toy", "files": {"train": upload_id}, "options": {"label_column": "nope"}}
    assert api.post("/v1/datasets/from-uploads", json=body).status_code == 422
    assert api.post("/v1/datasets/from-uploads", json={**body, "options": {}}).status_code == 201


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (None, b"x", "Content-Range"),
        ("bytes 0-9/5", b"x" * 10, "does not fit"),
        ("bytes 9-0/10", b"x", "does not fit"),
        ("bytes a-b/c", b"x", "Content-Range"),
        (f"bytes 0-9/{len(WHOLE)}", b"x" * 9, "The service received 9 bytes"),
        (f"bytes 0-9/{len(WHOLE)}", b"x" * 11, "The service received 11 bytes"),
    ],
)
def test_part_must_match_its_content_range(api: TestClient, header: str | None, data: bytes, message: str) -> None:
    upload_id = begin(api)
    answer = api.put(f"/v1/uploads/{upload_id}", content=data, headers={"Content-Range": header} if header else {})
    assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.text
    assert api.get(f"/v1/uploads/{upload_id}").json()["offset"] == 0


def test_oversized_upload_is_refused_and_deleted_one_gone(api: TestClient, gateway: Gateway) -> None:
    assert api.post("/v1/uploads", json={"name": "x.csv", "size": 1 << 60}).status_code == 422
    upload_id = begin(api)
    put(api, upload_id, 0, 999)
    assert api.delete(f"/v1/uploads/{upload_id}").status_code == 204
    assert put(api, upload_id, 1000, 1999).status_code == 404
    assert gateway.leftovers() == []


def test_uploads_with_equal_names_become_one_corpus(api: TestClient) -> None:
    ids = []
    for text in (b"one passage of text\n", b"another passage of text\n"):
        upload_id = api.post("/v1/uploads", json={"name": "docs.txt", "size": len(text)}).json()["id"]
        headers = {"Content-Range": f"bytes 0-{len(text) - 1}/{len(text)}"}
        assert api.put(f"/v1/uploads/{upload_id}", content=text, headers=headers).status_code == 200
        ids.append(upload_id)
    answer = api.post("/v1/corpora/from-uploads", json={"name": "docs", "files": ids})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued"), answer.text
    assert api.post("/v1/corpora/from-uploads", json={"name": "d/x", "files": ids}).status_code in (404, 422)


def test_other_text_than_an_id_names_no_upload(api: TestClient) -> None:
    upload_id = begin(api)
    assert put(api, upload_id, 0, 999).status_code == 200
    for text in (f"{upload_id}:parts", f"{upload_id}%0A", "%2e%2e"):
        for method in ("GET", "DELETE"):
            answer = api.request(method, f"/v1/uploads/{text}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), text
    body = {"name": "toy", "files": {"train": f"{upload_id}:parts"}}
    assert api.post("/v1/datasets/from-uploads", json=body).status_code == 404
    assert api.get(f"/v1/uploads/{upload_id}").json()["offset"] == 1000


@pytest.mark.parametrize("where", ["redis", "storage"])
@pytest.mark.parametrize("kind", ["datasets", "corpora"])
def test_outage_after_the_creation_does_not_fail_the_request(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    parts, text = gateway.parts, TRAIN if kind == "datasets" else "one passage of text\n"
    upload_id = upload_in_one_part(api, "a.csv" if kind == "datasets" else "a.txt", text.encode())
    outage = Mock(side_effect=StoreUnavailable("away") if where == "redis" else StorageUnavailable("away"))
    monkeypatch.setattr(parts.uploads._redis if where == "redis" else parts.artifacts, "delete", outage)
    files = {"train": upload_id} if kind == "datasets" else [upload_id]
    answer = api.post(f"/v1/{kind}/from-uploads", json={"name": "new", "files": files})
    assert answer.status_code == (201 if kind == "datasets" else 202), answer.text
    outage.assert_called_once()
    # A complete upload can be used again. Its parts stay until its record expires.
    assert api.get(f"/v1/uploads/{upload_id}").status_code == (200 if where == "redis" else 404)
    assert len(parts.artifacts.subfolders("default/parts")) == 1


def upload_for(api: Any, kind: str) -> dict[str, Any]:
    """Upload a file in one part, and return the body of the request that uses it."""
    if kind == "datasets":
        return {"name": "new", "files": {"train": upload_in_one_part(api, "a.csv", TRAIN.encode())}}
    return {"name": "new", "files": [upload_in_one_part(api, "a.txt", b"one passage of text")]}


@pytest.mark.parametrize("kind", ["datasets", "corpora"])
def test_repeated_request_returns_what_the_first_created(api: TestClient, gateway: Gateway, kind: str) -> None:
    body = upload_for(api, kind)
    first, again = (api.post(f"/v1/{kind}/from-uploads", json=body) for _ in range(2))
    assert again.status_code == first.status_code and again.json() == first.json(), again.text
    assert api.post(f"/v1/{kind}/from-uploads", json={**body, "name": "other"}).status_code == 404
    if kind == "datasets":
        assert api.delete(f"/v1/datasets/{first.json()['id']}").status_code == 204
        assert api.post("/v1/datasets/from-uploads", json=body).status_code == 404
        assert gateway.leftovers() == []


@pytest.mark.parametrize("kind", ["datasets", "corpora"])
def test_concurrent_equal_requests_create_one_version(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    gateway.loads.stop()
    uploads, both = gateway.parts.uploads, Barrier(2, timeout=20)
    assemble = uploads._assemble

    def assemble_both(*args: Any) -> Any:
        file = assemble(*args)
        both.wait()
        return file

    monkeypatch.setattr(uploads, "_assemble", assemble_both)
    with gateway.served() as url, httpx.Client(base_url=url, headers=AUTH, timeout=20) as api:
        body = upload_for(api, kind)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: api.post(f"/v1/{kind}/from-uploads", json=body), range(2))
        assert first.is_success and first.json() == second.json(), (first.text, second.text)
        assert (
            len(gateway.parts.artifacts.subfolders(f"default/{'datasets' if kind == 'datasets' else 'uploads'}")) == 1
        )
        if kind == "datasets":
            assert len(api.get("/v1/datasets").json()["data"]) == 1


def test_upload_deleted_during_its_use_is_not_found(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, uploads = upload_for(api, "datasets"), gateway.parts.uploads
    get = uploads.get

    def get_and_delete(tenant: str, upload_id: str) -> Any:
        upload = get(tenant, upload_id)
        uploads.delete(tenant, upload_id)
        return upload

    monkeypatch.setattr(uploads, "get", get_and_delete)
    assert api.post("/v1/datasets/from-uploads", json=body).json()["code"] == "not_found"


def test_dataset_version_has_number_and_digest(api: TestClient) -> None:
    first = upload(api).json()
    second = upload(api, train=TRAIN + "more film,pos\n").json()
    for name, dataset in {
        "toy": second, "toy@v1": first, "toy@v2": second, f"toy@{first['digest'][:8]}": first,
        f"toy@{second['digest']}": second,
    }.items():  # fmt: skip
        assert api.get(f"/v1/datasets/{name}").json()["id"] == dataset["id"], name
    for name in ("toy@v3", "toy@", f"toy@{first['digest'][:7]}", "nope@v1"):
        assert api.get(f"/v1/datasets/{name}").status_code == 404, name
