"""The commands and the Python of docs/tutorial.md print what the page shows."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.checks.docs.blocks import blocks_of
from tests.contract.coordinator_harness import real_work
from tests.contract.dashboard_pages import signed_in
from tests.contract.gateway import AUTH, TOKEN, Gateway
from tests.support import ROOT
from tlm_client.console import print_items
from tlm_client.summary import report_items

PAGE = ROOT / "docs" / "tutorial.md"
REPORT = Path(__file__).with_name("tutorial-report.json")
NUMBER = re.compile(r"\d+\.\d+")
RUN = re.compile(r"(?<=job_)\w+|(?<=ds_)\w+|\b\d+:\d\d\b|(?<=^Cost: ).*", re.MULTILINE)  # what each run has of its own
COMMANDS = {"sh": "{}", "python": "python - <<'END'\n{}END\n"}
MARK = "-- end of block --"


def steps() -> list[tuple[str, str]]:
    """Return the commands of each `sh` or `python` block with the output that the page shows, "" for none."""
    blocks = [*blocks_of(PAGE), None]
    return [
        (COMMANDS[block.language].format(block.text), follower.text if follower and follower.language == "text" else "")
        for block, follower in itertools.pairwise(blocks)
        if block and block.language in COMMANDS
    ]


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_commands_print_what_the_tutorial_shows(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "questions.csv", tmp_path / "docs")
    for name, arguments in (("tlm", "-m tlm_client "), ("python", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        (tmp_path / name).chmod(0o755)
    script = "".join(f"{commands}echo '{MARK}'\n" for commands, _ in steps())
    stop = threading.Event()
    work = real_work(gateway)

    def work_until_stopped() -> None:
        while not stop.wait(0.05):
            work()

    worker = threading.Thread(target=work_until_stopped)
    with gateway.served() as url:
        worker.start()
        environment = {
            "TLM_URL": url, "TLM_TOKEN": TOKEN, "AUTH": f"Authorization: {AUTH['Authorization']}", "COLUMNS": "100",
            "PATH": f"{tmp_path}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        try:
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        finally:
            stop.set()
            worker.join(30)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for (commands, shown), printed in zip(steps(), ran.stdout.split(MARK + "\n"), strict=False):
        if shown:
            shown, printed = (RUN.sub("…", trimmed(text)) for text in (shown, printed))
            assert NUMBER.sub("0.0", printed) == NUMBER.sub("0.0", shown), f"{commands}\n{printed}"
            numbers, expected = map(float, NUMBER.findall(printed)), map(float, NUMBER.findall(shown))
            assert list(numbers) == pytest.approx(list(expected), abs=0.02), f"{commands}\n{printed}"
    assert (tmp_path / "build" / "tutorial" / "predicted.csv").read_text().count("\n") == 3
    left = {path.name for path in tmp_path.iterdir() if path.is_file() or path.name == "model"}
    assert left == {"python", "tlm"}, "git ignores the folder build"
    check_pages(gateway)


def test_every_block_of_the_tutorial_is_run_or_compared() -> None:
    """The blocks without a language start or stop the service, or train for minutes."""
    unchecked = [block.text for block in blocks_of(PAGE) if block.language not in (*COMMANDS, "text")]
    assert all(text.startswith(("make setup\n", "tlm corpus add ", "curl ", "tlm down\n")) for text in unchecked), (
        unchecked
    )


def check_pages(gateway: Gateway) -> None:
    """Open each page of the finished jobs, whose stages really ran."""
    browser, (jobs, _) = signed_in(gateway), gateway.parts.jobs.list_jobs("default", limit=5)
    assert {(job.spec.scale, job.state) for job in jobs} == {("instant", "succeeded")}
    for job in jobs:
        for tab in ("", "/results", "/labels", "/selection", "/model", "/log"):
            answer = browser.get(f"/ui/jobs/{job.id}{tab}")
            assert answer.status_code == 200, f"{tab}: {answer.text}"


def test_job_with_a_corpus_printed_what_the_tutorial_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """The test above runs no such job, because training takes minutes."""
    print_items(*report_items(json.loads(REPORT.read_text(encoding="utf-8"))))
    shown = next(block.text for block in blocks_of(PAGE) if block.text.startswith("Test scores"))
    assert trimmed(capsys.readouterr().out) == trimmed(shown)


def trimmed(text: str) -> str:
    """Return text without the blanks at the ends of its lines, which align titles of tables."""
    return re.sub(r" +$", "", text, flags=re.MULTILINE)
