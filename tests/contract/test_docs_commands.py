"""The documentation is run: its curl and tlm commands, and the Python of docs/api.md, against a gateway."""

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
from services.api.outbound import Outbound
from tests.checks.docs.blocks import PAGES, blocks_of, commands_of
from tests.contract.dashboard_made import LABELS, begin, finish, make_corpus, make_job, table
from tests.contract.gateway import AUTH, TOKEN, Gateway, add_dataset, make_gateway
from tests.redis_server import RedisServer
from tests.support import ROOT
from tlm_client.cli import app
from tlm_client.client import TLMClient
from tlm_core.jobs.spec import JobSpec

# Commands that take longer than a test of pages may, or need the hub: what runs them instead.
ELSEWHERE = {
    r"^tlm (up|down|status)\b": "tests/integration/test_stack.py",
    r"--from-packages": "tests/unit/corpus/test_packages.py",
    r"hub:|/v1/datasets/hub": "tests/unit/tasks/test_hub.py",
    r"^tlm evaluate\b": "tests/integration/test_evaluate.py",
    r"deploy|docker|kubectl|^make |^source |^export |^python": "tests/checks/docs/test_commands_parse.py",
}  # fmt: skip
SIZE = 4096


@dataclass
class Reader:
    """Someone who types what a page says, in a folder with the files that it names."""

    http: httpx.Client
    url: str
    folder: Path
    job: str
    other: str
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names |= {"TLM_URL": self.url, "TLM_TOKEN": TOKEN, "AUTH": f"Authorization: Bearer {TOKEN}"}

    def fresh(self, *verbs: str) -> str:
        """A new job, in the state to which the verbs lead."""
        spec = {"dataset": "tickets", "overrides": {"selection.selector": "none"}}
        job: str = self.http.post("/v1/jobs", json=spec).json()["id"]
        for verb in verbs:
            assert self.http.post(f"/v1/jobs/{job}/{verb}").is_success
        return job

    def job_for(self, line: str) -> str:
        """The job that a reader has in mind where a page says JOB: for reading one that is done."""
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
            self.tlm(re.sub(r"\b(JOB_ID|ID)\b", job, re.sub(r"\bOTHER_(JOB_)?ID\b", self.other, line)))

    def tlm(self, line: str) -> None:
        # Nothing trains here, so a job that is new would be watched for ever.
        words = [word for word in shlex.split(line, comments=True)[1:] if word != "--watch"]
        result = CliRunner().invoke(app, words, input="y\n" if "delete" in words else None)
        assert result.exit_code == 0, f"{line}\n{result.output}"

    def curl(self, line: str) -> None:
        here = expanded(line.replace("http://127.0.0.1:8321", "$TLM_URL"), self.names | {"TOKEN": TOKEN})
        request = curl_request(shlex.split(here, comments=True)[1:], self.folder)
        if request.method == "DELETE" and not re.search("jobs|uploads|webhooks", str(request.url)):
            self.cancel_what_waits()
        answer = self.http.send(request)
        assert answer.is_success, f"{line}\n{answer.status_code} {answer.text}"
        if target := request.extensions.get("save_as"):
            with open(target, "ab" if answer.status_code == 206 and request.extensions["append"] else "wb") as file:
                file.write(answer.content)
        self._remember(request, answer)

    def cancel_what_waits(self) -> None:
        for job in self.http.get("/v1/jobs?state=queued&limit=100").json()["data"]:
            self.http.post(f"/v1/jobs/{job['id']}/cancel")

    def _remember(self, request: httpx.Request, answer: httpx.Response) -> None:
        """What a reader takes from an answer to the next command; and a reader waits for a corpus to be ready."""
        path = request.url.path
        for kind, name in (("uploads", "UPLOAD"), ("webhooks", "WEBHOOK")):
            if request.method == "POST" and path == f"/v1/{kind}":
                self.names[name] = answer.json()["id"]
        if request.method == "POST" and path == "/v1/corpora":
            with TLMClient(self.url, TOKEN) as client:
                client.wait_corpus(answer.json()["corpus"], answer.json()["id"])


def expanded(line: str, names: dict[str, str]) -> str:
    """$NAME filled in, but for what stands in single quotes."""
    parts = re.split(r"('[^']*')", line)
    return "".join(p if p.startswith("'") else re.sub(r"\$(\w+)", lambda m: names[m[1]], p) for p in parts)


def curl_request(words: list[str], folder: Path) -> httpx.Request:
    """The request that curl would make of its arguments. AssertionError for an option that is not known here."""
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
                assert word.startswith("http") and not url, f"what does curl make of {word}?"
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
    """The files that the pages name."""
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
    """A gateway with a corpus and two jobs that are done: one with retrieval, the other without."""

    gateway: Gateway
    url: str
    job: str
    other: str


@pytest.fixture(scope="module")
def served(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    client = redis_server.client()
    client.flushall()
    made = make_gateway(client, tmp_path_factory.mktemp("docs"), model_folders=(Path("/models"),))
    outbound = Outbound(private=False, resolve=lambda _host, _port: ["93.184.215.14"])
    gateway = dataclasses.replace(made, parts=dataclasses.replace(made.parts, outbound=outbound))
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
def worked(gateway: Gateway) -> Iterator[None]:
    """Someone who finishes, with made results, whatever job is submitted."""
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


def elsewhere(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in ELSEWHERE)


def test_what_is_run_elsewhere_is_there_and_still_documented() -> None:
    every = [line for page in PAGES for line in commands_of(page)]
    for pattern, file in ELSEWHERE.items():
        assert (ROOT / file).is_file(), file
        assert any(re.search(pattern, line) for line in every), f"{pattern} stands on no page any more"


def runnable(page: Path) -> list[str]:
    return [line for line in commands_of(page) if not elsewhere(line)]


def test_the_api_guide_works_from_top_to_bottom(reader: Reader) -> None:
    """The first test here: its reader begins without any data set."""
    shared: dict[str, Any] = {"job_id": reader.job, "other_job_id": reader.other}
    for block in blocks_of(ROOT / "docs" / "api.md"):
        for line in block.commands:
            if not elsewhere(line):
                reader.type(line)
        if block.language == "python":
            exec(compile(block.text, "docs/api.md", "exec"), shared)
    shared["tlm"].close()
    assert (reader.folder / "start.bin").read_bytes() == (reader.folder / "model.onnx").read_bytes()[:100]
    assert (reader.folder / "out" / "model.onnx").is_file()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "api.md" and runnable(page)], ids=lambda page: page.name
)
def test_the_commands_of_a_page_work(page: Path, reader: Reader) -> None:
    with TLMClient(reader.url, TOKEN) as client:  # what the page before this one has left there
        client.add_dataset("reviews", {"file": Path("all.jsonl"), "selection": Path("picked.csv")})
        for name in ("citations", "relations"):
            client.add_dataset(name, {"file": Path("all.jsonl")})
        for name in ("docs", "notes"):
            client.wait_corpus(name, client.add_corpus(name, [Path("notes.txt")]).id)
    for line in runnable(page):
        reader.type(line)


def test_the_python_of_the_readme_works(served: Served, reader: Reader) -> None:
    (text,) = (block.text for block in blocks_of(ROOT / "README.md") if block.language == "python")
    with TLMClient(reader.url, TOKEN) as client:
        client.wait_corpus("docs", client.add_corpus("docs", [Path("notes.txt")]).id)
    reader.cancel_what_waits()
    with worked(served.gateway):
        exec(text.replace("http://127.0.0.1:8321", reader.url), {"token": TOKEN})
    assert (reader.folder / "model" / "model.onnx").is_file()


def test_the_guide_names_every_address(served: Served) -> None:
    """A route that is new has to be shown, or it will not be found."""
    guide = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in create_app(served.gateway.parts).openapi()["paths"]:
        shown = re.sub(r"\\\{[^}]*\\\}", r"[\\w$@.{}-]+", re.escape(path))
        assert not path.startswith("/v1/") or re.search(rf"{shown}(?![\w/])", guide), path


def test_an_option_that_the_player_of_curl_does_not_know_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="--upload"):
        curl_request(["--upload", "http://127.0.0.1/v1/jobs"], tmp_path)


def test_jobs_of_the_guide_are_what_the_client_sends() -> None:
    """The bodies that the guide posts are whole requests for a job, not near misses."""
    bodies = re.findall(r"--json '(\{\"dataset\".*?\})'", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    assert len(bodies) >= 3
    for body in bodies:
        JobSpec.model_validate_json(body)
