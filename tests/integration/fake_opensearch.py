"""A server that answers like OpenSearch for one complete index, with failures on demand."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from services.retriever.indexes import CorpusKey
from services.retriever.opensearch_index import SCHEMA_VERSION, index_body
from tests.contract.selection_bm25 import NaiveBM25
from tlm_core.corpus.passages import Passage

BANNER = {"version": {"distribution": "opensearch", "number": "3.8.0"}}


@dataclass(frozen=True)
class Reply:
    """The response to a request. Status 0 closes the connection."""

    status: int
    body: Any = None


Override = Callable[[str, Any], Reply | None]
"""Receives the last part of the path and the normal response. Returns another response, or None."""


def no_override(_end: str, _answer: Any) -> Reply | None:
    return None


@dataclass
class FakeOpenSearch:
    """The state of the server. banner: the response of `/`. password: of user `tlm`, if required."""

    key: CorpusKey
    passages: Sequence[Passage]
    override: Override = no_override
    banner: Any = field(default_factory=lambda: BANNER)
    password: str | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def serving(self, *, port: int = 0, certificate: Path | None = None) -> Iterator[None]:
        """Listen on loopback, with TLS if there is a certificate (a file with certificate and key)."""
        state = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                state.handle(self)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                return  # a client that rejects the certificate closes the connection

        server = Server(("127.0.0.1", port), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        end = path.rsplit("/", 1)[-1]
        self.requests.append(end)
        reply = self._unauthorized(request) or Reply(200, self._response(path, body))
        reply = self.override(end, reply.body) or reply
        if reply.status == 0:
            request.close_connection = True
            return
        content = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
        request.send_response(reply.status)
        request.send_header("Content-Type", "text/html" if isinstance(reply.body, str) else "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _unauthorized(self, request: BaseHTTPRequestHandler) -> Reply | None:
        expected = "Basic " + base64.b64encode(f"tlm:{self.password}".encode()).decode()
        if self.password is None or request.headers.get("Authorization") == expected:
            return None
        return Reply(401, {"error": {"type": "security_exception", "reason": "unable to authenticate"}, "status": 401})

    def _response(self, path: str, body: bytes) -> Any:
        if path == "/":
            return self.banner
        if path.endswith("/_count"):
            return {"count": len(self.passages), "_shards": {"failed": 0}}
        if path.endswith("/_msearch"):
            return {"responses": [self._hits(json.loads(line)) for line in body.splitlines()[1::2]]}
        if path.endswith("/_mget"):
            stored = {passage.id: passage for passage in self.passages}
            return {"docs": [self._document(stored[name]) for name in json.loads(body)["ids"]]}
        assert path == f"/tlm-{self.key.slug}", path
        mark = {"schema": SCHEMA_VERSION, **self.key._asdict(), "analysis": "standard", "state": "ready"}
        body = index_body(mark, "standard", 1)
        settings = {**body["settings"], "uuid": "u"}
        return {path[1:]: {"mappings": body["mappings"], "settings": {"index": settings}}}

    def _hits(self, search: dict[str, Any]) -> dict[str, Any]:
        query = search["query"]["match"]["text"]["query"]
        hits = NaiveBM25(list(self.passages)).search(query, search["size"])
        entries = [{"sort": [hit.score, hit.id]} for hit in hits]
        return {"status": 200, "timed_out": False, "_shards": {"failed": 0}, "hits": {"hits": entries}}

    @staticmethod
    def _document(passage: Passage) -> dict[str, Any]:
        source = {"id": passage.id, "text": passage.text, "source": passage.source}
        return {"_id": passage.id, "found": True, "_source": source}
