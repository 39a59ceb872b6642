"""How many rows memory holds: counted from shapes, against the container's limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.api.work import Sizes
from tlm_core.training.memory import MICRO_ROWS, fitting_rows, memory_limit, training_bytes

LARGE = Sizes(
    layers=24, hidden=1024, heads=16, intermediate=2624, max_length=128, vocab=30_522, labels=7, rotary=True
)  # fmt: skip
GB = 1_000_000_000


def test_rows_are_halved_until_the_limit_holds_them() -> None:
    held = training_bytes(LARGE, LARGE.parameters, 0)
    assert held == 20 * LARGE.parameters
    rows = [fitting_rows(LARGE, LARGE.parameters, gigabytes * GB) for gigabytes in (1, 16, 32, 64)]
    assert rows == sorted(rows) and (rows[0], rows[-1]) == (1, MICRO_ROWS)
    for gigabytes, found in zip((16, 32), rows[1:3], strict=True):
        assert 1 < found < MICRO_ROWS
        assert training_bytes(LARGE, LARGE.parameters, found) < gigabytes * GB
        assert training_bytes(LARGE, LARGE.parameters, 4 * found) > gigabytes * GB / 2


def test_the_limit_is_the_container_s_where_it_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr("tlm_core.training.memory._LIMITS", tuple(map(str, files)))
    assert memory_limit() == machine
    files[0].write_text("max\n")
    files[1].write_text("9223372036854771712\n")
    assert memory_limit() == machine
    files[0].write_text("536870912\n")
    assert memory_limit() == 536_870_912
