"""A selection that is broken off goes on where it stopped, and comes to the same bytes."""

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
from tlm_core.selection.retrieve import BATCH, PART
from tlm_core.selection.select import Corpus, select
from tlm_core.training.recipe import Selection

PASSAGES = [Passage(f"p{n:03d}", f"w{n} w{n % 7} w{n % 5}", f"s{n % 3}") for n in range(60)]
TASK = task_of([f"w{n % 60} w{n % 7} text {n}" for n in range(2 * PART + 300)])


class Killed(BaseException):
    """What ends a process, as far as a test in the same process can."""


class FailingIndex(WordCountIndex):
    """Dies at its n-th search."""

    def __init__(self, searches: int) -> None:
        super().__init__(PASSAGES)
        self._left = searches

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not self._left:
            raise Killed
        self._left -= 1
        return super().search(queries, k)


def run(index: WordCountIndex, folder: Path, parts: Path, selector: str = "bm25") -> dict[str, str]:
    params = Selection.model_validate({"selector": selector, "top_k": 5})
    select(TASK, Corpus("docs", "v1", index), params, folder, seed=0, parts=parts)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    return run(WordCountIndex(PASSAGES), folder / "out", folder / "parts")


@pytest.mark.parametrize("searches", [0, 1, PART // BATCH, PART // BATCH + 1, 2 * PART // BATCH])
def test_what_was_searched_is_not_searched_again(tmp_path: Path, whole: dict[str, str], searches: int) -> None:
    with pytest.raises(Killed):
        run(FailingIndex(searches), tmp_path / "a", tmp_path / "parts")
    again = WordCountIndex(PASSAGES)
    assert run(again, tmp_path / "b", tmp_path / "parts") == whole
    kept = BATCH * searches // PART * PART
    assert sum(map(len, again.searched)) == len(TASK.texts("train")) - kept


def test_a_part_that_was_torn_is_searched_again(tmp_path: Path, whole: dict[str, str]) -> None:
    run(WordCountIndex(PASSAGES), tmp_path / "a", tmp_path / "parts")
    torn = sorted((tmp_path / "parts").rglob("*.parquet"))[1]
    torn.write_bytes(torn.read_bytes()[:-9])
    again = WordCountIndex(PASSAGES)
    assert run(again, tmp_path / "b", tmp_path / "parts") == whole
    assert sum(map(len, again.searched)) == PART


def test_a_full_disk_is_told_as_one_wherever_it_is_met(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="no space left"), no_file_larger_than(1_000):
        run(WordCountIndex(PASSAGES), tmp_path / "a", tmp_path / "parts")
    run(WordCountIndex(PASSAGES), tmp_path / "b", tmp_path / "parts")  # so that all hits are there
    with pytest.raises(StorageFull, match="no space left"), no_file_larger_than(1_000):
        run(WordCountIndex(PASSAGES), tmp_path / "c", tmp_path / "parts")


def test_what_an_earlier_try_wrote_into_the_same_folder_does_not_stay(tmp_path: Path, whole: dict[str, str]) -> None:
    with pytest.raises(Killed):
        run(FailingIndex(1), tmp_path / "a", tmp_path / "parts")
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "passages.parquet").write_bytes(b"half")
    assert run(WordCountIndex(PASSAGES), tmp_path / "a", tmp_path / "parts") == whole
