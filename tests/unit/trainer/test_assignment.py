"""Assignments on the command line."""

from __future__ import annotations

import pytest

from services.trainer.assignment import Assignment


@pytest.mark.parametrize(
    "assignment",
    [Assignment("public", "j1", 2, "train", 1, 1, 1.0, 0.0), Assignment("a-b", "j2", 11, "s.3", 4, 8, 0.25, 0.5)],
)
def test_assignment_survives_the_command_line(assignment: Assignment) -> None:
    assert Assignment.read(assignment.arguments()) == assignment


def test_missing_argument_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Assignment.read(Assignment("public", "j1", 2, "train", 1, 1, 1.0, 0.0).arguments()[2:])
    assert "--tenant" in capsys.readouterr().err
