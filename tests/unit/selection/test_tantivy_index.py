"""The embedded index's folder: whole or refused, and the same for the same passages."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, NotFound
from tlm_core.selection.tantivy_index import TantivyIndex


def passages(count: int) -> list[Passage]:
    draw = random.Random(0)
    return [Passage(f"p{n}", " ".join(f"w{draw.randint(1, 300)}" for _ in range(30)), "s") for n in range(count)]


def built(folder: Path, count: int = 50) -> Path:
    index = TantivyIndex.create(folder, "en")
    index.add(passages(count))
    index.commit(count)
    index.close()
    return folder


def test_the_same_passages_give_the_same_scores_to_the_last_bit(tmp_path: Path) -> None:
    queries = [p.text for p in passages(40)]
    found = []
    for name in ("a", "b"):
        index = TantivyIndex.open(built(tmp_path / name, 3000))
        found.append(index.search(queries, 50))
        index.close()
    assert found[0] == found[1]


def test_a_folder_without_its_last_file_is_no_index(tmp_path: Path) -> None:
    (built(tmp_path / "x") / "index.json").unlink()
    with pytest.raises(NotFound, match="load the corpus again"):
        TantivyIndex.open(tmp_path / "x")


@pytest.mark.parametrize("fault", ["other release", "torn note", "lost terms", "lost passages"])
def test_a_damaged_folder_is_refused(tmp_path: Path, fault: str) -> None:
    folder = built(tmp_path / "x")
    note = json.loads((folder / "index.json").read_text())
    if fault == "other release":
        (folder / "index.json").write_text(json.dumps({**note, "schema": 0}))
    elif fault == "torn note":
        (folder / "index.json").write_text("{")
    elif fault == "lost terms":
        shutil.rmtree(folder / "terms")
    else:
        (folder / "passages.arrow").write_bytes((folder / "passages.arrow").read_bytes()[:100])
    with pytest.raises(IndexMismatch, match="load the corpus again"):
        TantivyIndex.open(folder)


def test_what_is_not_committed_cannot_be_searched(tmp_path: Path) -> None:
    index = TantivyIndex.create(tmp_path / "x", "en")
    index.add(passages(3))
    with pytest.raises(Conflict):
        index.search(["w1"], 3)
    index.close()
    with pytest.raises(NotFound):
        TantivyIndex.open(tmp_path / "x")


def test_an_index_of_nothing_answers_nothing(tmp_path: Path) -> None:
    index = TantivyIndex.open(built(tmp_path / "x", 0))
    assert (index.count(), index.search(["w1"], 3), list(index.ids())) == (0, [[]], [[]])
    index.close()


def test_passages_are_fetched_from_any_part_of_the_folder(tmp_path: Path) -> None:
    index, known = TantivyIndex.open(built(tmp_path / "x", 9000)), {p.id: p for p in passages(9000)}
    for step in (1, 7, 8999):
        names = list(known)[::-step]
        assert index.fetch(names) == {name: known[name] for name in names}
    with pytest.raises(NotFound, match="'p9000'"):
        index.fetch(["p1", "p9000", "p2"])
    index.close()
