"""The help of the commands: groups, summaries and examples."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tlm_client.cli import app


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command."""
    if not hasattr(command, "list_commands"):
        yield path
        return
    for name in command.list_commands(None):
        yield from commands(command.get_command(None, name), (*path, name))


EVERY = list(commands(typer.main.get_command(app)))


def help_of(*words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, f"{words}\n{result.output}"
    return result.stdout


def test_help_groups_the_commands_with_their_summaries() -> None:
    text = help_of()
    positions = [text.index(f"\n{panel}:\n") for panel in ("Run", "Jobs", "Data", "Models", "Service")]
    assert positions == sorted(positions)
    assert "  submit    Submit a job\n" in text and "  dataset  Labeled texts: add, list, show, delete\n" in text


def test_misspelled_command_gets_a_suggestion() -> None:
    assert "Did you mean 'submit'" in CliRunner().invoke(app, ["submitt"]).stderr


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_each_command_has_a_json_option_and_two_valid_examples(words: tuple[str, ...]) -> None:
    text = help_of(*words)
    assert "--json" in text
    examples = text.partition("\n  Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 2
    for example in examples:
        arguments = shlex.split(example)
        assert arguments[0] == "tlm" and " ".join(words) in " ".join(arguments)
        help_of(*arguments[1:])


@pytest.mark.parametrize("group", sorted({words[0] for words in EVERY if len(words) > 1}))
def test_each_group_has_two_valid_examples(group: str) -> None:
    examples = help_of(group).partition("\n  Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 2 and all(example.strip().startswith(f"tlm {group} ") for example in examples)
    for example in examples:
        help_of(*shlex.split(example)[1:])
