"""An assignment's way over a command line."""

from __future__ import annotations

import pytest

from services.trainer.assignment import Assignment


@pytest.mark.parametrize(
    "said", [Assignment("public", "j1", 2, "train", 1, 1.0, 0.0), Assignment("a-b", "j2", 11, "s.3", 4, 0.25, 0.5)]
)
def test_a_command_line_says_what_was_assigned(said: Assignment) -> None:
    assert Assignment.read(said.arguments()) == said


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Assignment.read(Assignment("public", "j1", 2, "train", 1, 1.0, 0.0).arguments()[:-2])
    assert "--gpus" in capsys.readouterr().err
