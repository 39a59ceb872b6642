"""Memory estimates, and the rows that fit the container's limit."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.memory import MICRO_ROWS, memory_limit, predicting_bytes, rows_at_once, training_bytes

LARGE = Shape("modernbert", 30_522, 7, layers=24, hidden=1024, heads=16, intermediate=2624, max_length=128)
PARAMETERS = architecture_of(LARGE).parameters(LARGE)
GB = 1_000_000_000


def test_rows_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    held = training_bytes(LARGE, PARAMETERS, 0)
    assert held == 20 * PARAMETERS
    rows = []
    for gigabytes in (1, 16, 32, 64):
        monkeypatch.setattr("tlm_core.training.memory.memory_limit", lambda limit=gigabytes * GB: limit)
        rows.append(rows_at_once("cpu", 1, MICRO_ROWS, partial(training_bytes, LARGE, PARAMETERS)))
    assert rows == sorted(rows) and (rows[0], rows[-1]) == (1, MICRO_ROWS)
    for gigabytes, count in zip((16, 32), rows[1:3], strict=True):
        assert 1 < count < MICRO_ROWS
        assert training_bytes(LARGE, PARAMETERS, count) < gigabytes * GB
        assert training_bytes(LARGE, PARAMETERS, 4 * count) > gigabytes * GB / 2


def test_memory_estimate_covers_the_vocabulary_loss() -> None:
    # Measured with 16 rows: 346 MB, of which the exponentials of 1,216 masked tokens take 292.
    wide = Shape("modernbert", 60_000, 3, layers=1, hidden=64, heads=2, intermediate=64, max_length=256)
    passes = [training_bytes(wide, 0, 16, masked) / 1e6 for masked in (0.0, 0.3)]
    assert passes[0] < 80 and passes[1] == pytest.approx(346, rel=0.15)
    assert training_bytes(LARGE, PARAMETERS, 8, 0.3) == training_bytes(LARGE, PARAMETERS, 8)


@pytest.mark.parametrize("sizes", [LARGE, replace(LARGE, layers=1, heads=1, max_length=2048)])
def test_memory_for_training_fits_validation_with_twice_the_rows(sizes: Shape) -> None:
    trained, predicted = (count(sizes, 10, rows) for count, rows in ((training_bytes, 64), (predicting_bytes, 128)))
    assert predicted <= trained
    maps = 128 * sizes.heads * sizes.max_length**2 * 4  # the scores of all heads, and their softmax
    assert predicted > 2 * maps


def test_container_limit_bounds_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr("tlm_core.training.memory._LIMITS", tuple(map(str, files)))
    assert memory_limit() == machine
    files[0].write_text("max\n")
    files[1].write_text("9223372036854771712\n")
    assert memory_limit() == machine
    files[0].write_text("536870912\n")
    assert memory_limit() == 536_870_912
