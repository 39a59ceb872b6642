"""Gateway and retriever together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import redis
from fastapi.testclient import TestClient

from services.common.retriever_client import RetrieverClient
from services.loader.loads import LoadWorker
from services.retriever.app import RetrieverSettings, assemble
from tests.contract.corpora import wait_for_corpus
from tests.contract.gateway import make_gateway

WORDS = ("retrieval", "training", "tokenizer", "gradient", "corpus")


def test_uploaded_corpus_is_indexed_and_searchable(redis_client: redis.Redis, tmp_path: Path) -> None:
    gateway = make_gateway(redis_client, tmp_path)
    settings = RetrieverSettings(
        storage=gateway.parts.settings.storage, scratch=tmp_path / "retriever", internal_token="t"
    )
    lines = "".join(
        json.dumps({"text": f"This short passage is about {word} and again {word}. " * 5, "source": word}) + "\n"
        for word in WORDS
    )
    with TestClient(assemble(settings), headers={"Authorization": "Bearer t"}) as inner:
        client = RetrieverClient(inner)
        parts = gateway.parts
        worker = LoadWorker(parts.catalog, parts.artifacts, client, parts.settings.scratch, poll_seconds=0.02)
        gateway = replace(gateway, parts=replace(parts, retriever=client), loads=worker)
        with gateway.test_client() as api:
            api.post("/v1/corpora", data={"name": "docs"}, files={"files": ("a.jsonl", lines)})
            corpus = wait_for_corpus(api)
            assert corpus["loads"][0]["state"] == "ready", corpus
            assert api.get("/readyz").status_code == 200
            for word in WORDS:
                hits = api.post("/v1/corpora/docs/search", json={"query": word, "k": 2}).json()["hits"]
                assert [hit["source"] for hit in hits] == [word]
                assert hits[0]["score"] > 0
