"""An interrupted selection resumes and writes the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import no_file_larger_than
from tests.unit.selection.fake_index import WordCountIndex
from tests.unit.selection.make import task_of
from tlm_core.corpus.passages import Passage
from tlm_core.errors import StorageFull
from tlm_core.selection.index import Hit
from tlm_core.selection.interface import Corpus
from tlm_core.selection.retrieve import BATCH, PART
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection

PASSAGES = [Passage(f"p{n:03d}", f"w{n} w{n % 7} w{n % 5}", f"s{n % 3}") for n in range(60)]
TASK = task_of([f"w{n % 60} w{n % 7} text {n}" for n in range(2 * PART + 300)])


class Killed(BaseException):
    """Simulates the end of the process."""


class FailingIndex(WordCountIndex):
    """Raises Killed after `searches` searches."""

    def __init__(self, searches: int) -> None:
        super().__init__(PASSAGES)
        self._remaining = searches

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not self._remaining:
            raise Killed
        self._remaining -= 1
        return super().search(queries, k)


def run(index: WordCountIndex, folder: Path, scratch: Path) -> dict[str, str]:
    """Select and return the digest of each file."""
    select(TASK, Corpus("docs", "v1", index), Selection(top_k=5), folder, seed=0, scratch=scratch)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run(WordCountIndex(PASSAGES), folder / "out", folder / "parts")


@pytest.mark.parametrize("searches", [0, 1, PART // BATCH, PART // BATCH + 1, 2 * PART // BATCH])
def test_resumed_selection_repeats_no_finished_search(
    tmp_path: Path, uninterrupted: dict[str, str], searches: int
) -> None:
    with pytest.raises(Killed):
        run(FailingIndex(searches), tmp_path / "a", tmp_path / "parts")
    resumed = WordCountIndex(PASSAGES)
    assert run(resumed, tmp_path / "b", tmp_path / "parts") == uninterrupted
    finished = BATCH * searches // PART * PART
    assert sum(map(len, resumed.searched)) == len(TASK.texts("train")) - finished


def test_truncated_part_is_searched_again(tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    run(WordCountIndex(PASSAGES), tmp_path / "a", tmp_path / "parts")
    truncated = sorted((tmp_path / "parts").rglob("*.parquet"))[1]
    truncated.write_bytes(truncated.read_bytes()[:-9])
    resumed = WordCountIndex(PASSAGES)
    assert run(resumed, tmp_path / "b", tmp_path / "parts") == uninterrupted
    assert sum(map(len, resumed.searched)) == PART


def test_full_disk_raises_storage_full_at_every_step(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="no space left"), no_file_larger_than(1_000):
        run(WordCountIndex(PASSAGES), tmp_path / "a", tmp_path / "parts")
    run(WordCountIndex(PASSAGES), tmp_path / "b", tmp_path / "parts")
    with pytest.raises(StorageFull, match="no space left"), no_file_larger_than(1_000):
        run(WordCountIndex(PASSAGES), tmp_path / "c", tmp_path / "parts")


def test_resumed_selection_overwrites_partial_output(tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    with pytest.raises(Killed):
        run(FailingIndex(1), tmp_path / "a", tmp_path / "parts")
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "passages.parquet").write_bytes(b"half")
    assert run(WordCountIndex(PASSAGES), tmp_path / "a", tmp_path / "parts") == uninterrupted
