"""Run the curl and tlm commands and the Python of the documentation against a gateway."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from services.api.app import create_app
from services.api.openapi import DESCRIPTION
from services.api.outbound import Outbound
from tests.checks.docs.blocks import PAGES, blocks_of, commands_of
from tests.contract.filled_dashboard import LABELS, begin, finish, make_corpus, make_job, table
from tests.contract.gateway import AUTH, TOKEN, Gateway, add_dataset, make_gateway
from tests.redis_server import RedisServer
from tests.support import ROOT
from tlm_client.cli import app
from tlm_client.client import TLMClient
from tlm_core.jobs.spec import JobSpec

# Commands that are slow or need the hub, and the tests that cover them.
ELSEWHERE = {
    r"^tlm (up|down|status)\b": "tests/integration/test_stack.py",
    r"--from-packages": "tests/unit/corpus/test_packages.py",
    r"hub:|/v1/datasets/hub": "tests/unit/tasks/test_hub.py",
    r"^tlm evaluate\b": "tests/integration/test_evaluate.py",
    r"^tlm open\b": "tests/unit/client/test_cli.py",
    r"^tlm (push|mlflow)\b": "tests/contract/test_publishing.py",
    r"^tlm quantize\b": "tests/unit/test_serving_models.py",
    r"deploy|docker|kubectl|^make |^source |^export |^python": "tests/checks/docs/test_commands_parse.py",
}  # fmt: skip
README = ROOT / "README.md"
SIZE = 4096


@dataclass
class Reader:
    """A user who runs the commands of a page in a folder with the files that it names."""

    http: httpx.Client
    url: str
    folder: Path
    job: str
    other: str
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names |= {"TLM_URL": self.url, "TLM_TOKEN": TOKEN, "AUTH": f"Authorization: Bearer {TOKEN}"}

    def fresh(self, *verbs: str) -> str:
        """Submit a job, apply the verbs, and return its id."""
        spec = {"dataset": "tickets", "overrides": {"selection.selector": "none"}}
        job: str = self.http.post("/v1/jobs", json=spec).json()["id"]
        for verb in verbs:
            assert self.http.post(f"/v1/jobs/{job}/{verb}").is_success
        return job

    def job_for(self, line: str) -> str:
        """Return the job that replaces JOB in a command: finished, or in the state that the command needs."""
        if re.search(r"\b(pause|cancel)\b", line):
            return self.fresh()
        if re.search(r"\bresume\b", line):
            return self.fresh("pause")
        if re.search(r"\bretry\b|\bdelete\b|-X DELETE \S+/jobs/", line):
            return self.fresh("cancel")
        return self.job

    def type(self, line: str) -> None:
        job = self.job_for(line)
        if line.startswith("curl "):
            self.names |= {"JOB": job, "OTHER_JOB": self.other}
            self.curl(line)
        else:
            self.tlm(re.sub(r"\b(JOB_ID|ID)\b|@latest", job, re.sub(r"\bOTHER_(JOB_)?ID\b", self.other, line)))

    def tlm(self, line: str) -> None:
        # No worker runs here, so a new job would never end.
        here = expanded(line.replace("http://127.0.0.1:8321", self.url), {"TOKEN": TOKEN})
        words = [word for word in shlex.split(here, comments=True)[1:] if word != "--watch"]
        result = CliRunner().invoke(app, words, input="y\n" if "delete" in words else None)
        assert result.exit_code == 0, f"{line}\n{result.output}"

    def curl(self, line: str) -> None:
        here = expanded(line.replace("http://127.0.0.1:8321", "$TLM_URL"), self.names | {"TOKEN": TOKEN})
        request = curl_request(shlex.split(here, comments=True)[1:], self.folder)
        if request.method == "DELETE" and not re.search("jobs|uploads|webhooks|models", str(request.url)):
            self.cancel_queued_jobs()
        answer = self.http.send(request)
        assert answer.is_success, f"{line}\n{answer.status_code} {answer.text}"
        if target := request.extensions.get("save_as"):
            with open(target, "ab" if answer.status_code == 206 and request.extensions["append"] else "wb") as file:
                file.write(answer.content)
        self._remember(request, answer)

    def cancel_queued_jobs(self) -> None:
        for job in self.http.get("/v1/jobs?state=queued&limit=100").json()["data"]:
            self.http.post(f"/v1/jobs/{job['id']}/cancel")

    def _remember(self, request: httpx.Request, answer: httpx.Response) -> None:
        """Store ids that later commands need, and wait for an uploaded corpus."""
        path = request.url.path
        for kind, name in (("uploads", "UPLOAD"), ("webhooks", "WEBHOOK")):
            if request.method == "POST" and path == f"/v1/{kind}":
                self.names[name] = answer.json()["id"]
        if request.method == "POST" and path == "/v1/corpora":
            with TLMClient(self.url, TOKEN) as client:
                client.wait_corpus(answer.json()["corpus"], answer.json()["id"])


def expanded(line: str, names: dict[str, str]) -> str:
    """Replace $NAME by its value, except in single quotes."""
    parts = re.split(r"('[^']*')", line)
    return "".join(p if p.startswith("'") else re.sub(r"\$(\w+)", lambda m: names[m[1]], p) for p in parts)


def curl_request(words: list[str], folder: Path) -> httpx.Request:
    """Return the request that curl sends for these arguments. Raises AssertionError for an unsupported option."""
    method, url, headers, more = "", "", {}, {}  # type: ignore[var-annotated]
    form: list[tuple[str, Any]] = []
    extensions: dict[str, Any] = {"append": False}
    rest = iter(words)
    for word in rest:
        match word:
            case "-N" | "-s" | "-f":
                pass
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "--json":
                more["content"] = next(rest)
                headers["Content-Type"] = "application/json"
            case "-T":
                method, more["content"] = "PUT", (folder / next(rest)).read_bytes()
            case "-F":
                name, _, value = next(rest).partition("=")
                file = folder / value[1:]
                form.append((name, (file.name, file.read_bytes()) if value.startswith("@") else (None, value)))
            case "-o":
                extensions["save_as"] = folder / next(rest)
            case "-r":
                headers["Range"] = f"bytes={next(rest)}"
            case "-C":
                assert next(rest) == "-"
                extensions["append"] = True
            case _:
                assert word.startswith("http") and not url, f"This test does not support the curl option {word}."
                url = word
    target = extensions.get("save_as")
    if extensions["append"] and target.exists():
        headers["Range"] = f"bytes={target.stat().st_size}-"
    if form:
        more["files"] = form
    method = method or ("POST" if more else "GET")
    return httpx.Request(method, url, headers=headers, extensions=extensions, **more)


def csv(rows: int, name: str) -> str:
    return "text,label\n" + "".join(f"{name} good film {n},pos\n{name} bad film {n},neg\n" for n in range(rows))


def make_files(folder: Path) -> None:
    """Write the files that the pages name."""
    body = csv(70, "one")
    line = f"a film {'x' * (SIZE - len(body) - len('a film ,pos') - 1)},pos\n"
    (folder / "train.csv").write_text(body + line)
    assert (folder / "train.csv").stat().st_size == SIZE
    (folder / "test.csv").write_text(csv(10, "two"))
    for name in ("data/reviews", "reviews", "notes"):
        (folder / name).mkdir(parents=True)
    for name in ("data/reviews", "reviews"):
        for split in ("train", "dev", "test"):
            (folder / name / f"{split}.csv").write_text(csv(20, split))
    rows = [{"text": f"film {n} {'good' * (n % 2)}", "stars": str(n % 2)} for n in range(40)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "all.jsonl").write_text(lines)
    (folder / "reviews.csv").write_text("text\na text\nanother\n")
    (folder / "data" / "all.jsonl").write_text(lines)
    pairs = "".join(f"premise {n},hypothesis {n},{'yes' if n % 2 else 'no'}\n" for n in range(40))
    (folder / "pairs.csv").write_text("premise,hypothesis,gold_label\n" + pairs)
    (folder / "picked.csv").write_text("text,rank\nall about films,1\nand about books,2\n")
    texts = "".join(json.dumps({"text": f"About parcels, number {n}."}) + "\n" for n in range(5))
    (folder / "articles.jsonl").write_text(texts)
    (folder / "articles.jsonl.gz").write_bytes(gzip.compress(texts.encode()))
    (folder / "notes.txt").write_text("The gradient of the loss is what training goes by.\n")
    (folder / "notes" / "one.md").write_text("The gradient of the loss is what training goes by.\n")


@dataclass(frozen=True)
class Served:
    """A gateway with a corpus and two finished jobs, one with retrieval and one without."""

    gateway: Gateway
    url: str
    job: str
    other: str


@pytest.fixture(scope="module")
def served(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    client = redis_server.client()
    client.flushall()
    base = make_gateway(client, tmp_path_factory.mktemp("docs"), model_folders=(Path("/models"),))
    outbound = Outbound(private=False, resolve=lambda _host, _port: ["93.184.215.14"])
    gateway = dataclasses.replace(base, parts=dataclasses.replace(base.parts, outbound=outbound))
    sizes = {"train": 60, "validation": 20, "test": 20}
    tables = {name: table(rows, seed) for seed, (name, rows) in enumerate(sizes.items())}
    dataset = add_dataset(gateway, "tickets", tables)
    make_corpus(gateway)
    done = make_job(gateway, "succeeded", dataset), make_job(gateway, "alone", dataset)
    with gateway.served() as url:
        yield Served(gateway, url, *done)
    client.close()


@pytest.fixture
def reader(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in (("XDG_CONFIG_HOME", str(tmp_path)), ("TLM_URL", served.url), ("TLM_TOKEN", TOKEN)):
        monkeypatch.setenv(name, value)
    with httpx.Client(base_url=served.url, headers=AUTH, trust_env=False, timeout=30) as http:
        yield Reader(http, served.url, tmp_path, served.job, served.other)


@contextmanager
def working_cluster(gateway: Gateway) -> Iterator[None]:
    """Finish each submitted job with generated results."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            job = gateway.parts.jobs.claim("maker", 60)
            if job is not None:
                begin(gateway, job)
                finish(gateway, job, LABELS, skill=0.8)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def runs_elsewhere(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in ELSEWHERE)


def test_excluded_commands_are_documented_and_covered() -> None:
    every = [line for page in PAGES for line in commands_of(page)]
    for pattern, file in ELSEWHERE.items():
        assert (ROOT / file).is_file(), file
        assert any(re.search(pattern, line) for line in every), f"No page contains {pattern}."


def runnable(page: Path) -> list[str]:
    return [line for line in commands_of(page) if not runs_elsewhere(line)]


def test_api_guide_works_from_top_to_bottom(reader: Reader) -> None:
    """This test runs first, because it needs a gateway without other datasets."""
    shared: dict[str, Any] = {"job_id": reader.job, "other_job_id": reader.other}
    for block in blocks_of(ROOT / "docs" / "api.md"):
        for line in block.commands:
            if not runs_elsewhere(line):
                reader.type(line)
        if block.language == "python":
            exec(compile(block.text, "docs/api.md", "exec"), shared)
    shared["tlm"].close()
    assert (reader.folder / "start.bin").read_bytes() == (reader.folder / "model.onnx").read_bytes()[:100]
    assert (reader.folder / "out" / "model.onnx").is_file()


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in ("README.md", "api.md", "tutorial.md") and runnable(page)],
    ids=lambda page: page.name,
)
def test_commands_of_a_page_work(page: Path, reader: Reader) -> None:
    with TLMClient(reader.url, TOKEN) as client:  # the previous page creates these
        client.add_dataset("reviews", {"file": Path("all.jsonl"), "selection": Path("picked.csv")})
        for name in ("citations", "relations"):
            client.add_dataset(name, {"file": Path("all.jsonl")})
        for name in ("docs", "notes"):
            client.wait_corpus(name, client.add_corpus(name, [Path("notes.txt")]).id)
    for line in runnable(page):
        reader.type(line)


def test_readme_works_as_printed_in_a_clean_clone(
    served: Served, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has the files of the repository alone. Other tests cover the corpus from packages and the stack."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(clone)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".local" / "share" / "tlm" / "secrets" / "api_token"
    file.parent.mkdir(parents=True)
    file.write_text(f"{TOKEN}\n", encoding="utf-8")  # as `tlm up` writes it
    (text,) = (block.text for block in blocks_of(README) if block.language == "python")
    with TLMClient(reader.url, TOKEN) as client:
        client.wait_corpus("docs", client.add_corpus("docs", [tmp_path / "notes.txt"]).id)
    reader.cancel_queued_jobs()
    assert len(runnable(README)) >= 5
    with working_cluster(served.gateway):
        for line in runnable(README):
            result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
        exec(text.replace("http://127.0.0.1:8321", reader.url), {})
    assert (clone / "model" / "model.onnx").is_file()


def test_requests_in_the_description_of_openapi_work(reader: Reader) -> None:
    requests = re.findall(r"curl .*?(?= \||\s+#|$)", DESCRIPTION, re.MULTILINE)
    assert len(requests) == 6
    for request in requests:
        reader.type(request)


def test_guide_shows_every_route(served: Served) -> None:
    guide = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in create_app(served.gateway.parts).openapi()["paths"]:
        shown = re.sub(r"\\\{[^}]*\\\}", r"[\\w$@.{}-]+", re.escape(path))
        assert not path.startswith("/v1/") or re.search(rf"{shown}(?![\w/])", guide), path


def test_unsupported_curl_option_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="--upload"):
        curl_request(["--upload", "http://127.0.0.1/v1/jobs"], tmp_path)


def test_job_requests_of_the_guide_are_valid() -> None:
    bodies = re.findall(r"--json '(\{\"dataset\".*?\})'", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    assert len(bodies) >= 3
    for body in bodies:
        JobSpec.model_validate_json(body)
