"""Documented commands are valid: their subcommands, options, targets, files and links exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tlm_client.client
from tests.checks.docs.blocks import PAGES, blocks_of, commands_of
from tests.support import ROOT
from tlm_client.cli import app

EVERY = [(page.name, command) for page in PAGES for command in commands_of(page)]


def lines_of(*programs: str) -> list[str]:
    return sorted({command for _, command in EVERY if command.split()[0] in programs})


def test_main_pages_contain_commands() -> None:
    pages = {name for name, _ in EVERY}
    assert {"README.md", "quickstart.md", "api.md", "data.md", "scale.md", "report.md", "deploy.md"} <= pages
    assert len(lines_of("tlm")) > 40 and len(lines_of("curl")) > 40


@pytest.mark.parametrize("line", lines_of("tlm"))
def test_tlm_commands_and_options_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    # With --help nothing runs, but an unknown command or option is still an error.
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, f"{line}\n{result.output}"


def test_unknown_commands_and_options_are_detected() -> None:
    for words in (["submitt"], ["submit", "--datasett", "x"], ["dataset", "remove"]):
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 2


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in lines_of("make"):
        for word in shlex.split(line.split("   ")[0], comments=True)[1:]:
            assert "=" in word or word in targets, line


@pytest.mark.parametrize("line", lines_of("docker", "kubectl", "deploy/make-env", "python", "python3"))
def test_files_and_modules_in_commands_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    for word in words:
        if re.match(r"(deploy/(kubernetes|compose|make)|docs/|tests/|benchmarks/|docker-compose)", word):
            assert (ROOT / word).exists(), line
    if "-m" in words and words[0].startswith("python"):
        assert importlib.util.find_spec(words[words.index("-m") + 1]), line


def test_restarts_name_either_types_or_resources() -> None:
    restarts = [line.split("rollout restart ")[1].split() for line in lines_of("kubectl") if "rollout restart " in line]
    assert len(restarts) >= 3
    assert [words for words in restarts if len({"/" in word for word in words}) > 1] == [], "kubectl refuses a mixture"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_the_curl_version_before_using_json(page: Path) -> None:
    if any(command.startswith("curl ") and " --json " in command for command in commands_of(page)):
        before = re.split(r"^curl .* --json ", page.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)[0]
        assert "curl 7.82" in before


def called_on(tree: ast.AST, name: str) -> set[str]:
    """Return the methods that are called on the variable `name`."""
    return {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == name
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_parse_and_call_client_methods(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            unknown = called_on(ast.parse(block.text), "tlm") - set(dir(tlm_client.client.TLMClient))
            assert not unknown, block.text


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_are_valid(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
