"""The folder of the embedded index: complete or rejected, and equal for equal passages."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, NotFound
from tlm_core.selection.tantivy_index import TantivyIndex


def passages(count: int) -> list[Passage]:
    rng = random.Random(0)
    return [Passage(f"p{n}", " ".join(f"w{rng.randint(1, 300)}" for _ in range(30)), "s") for n in range(count)]


def built(folder: Path, count: int = 50) -> Path:
    index = TantivyIndex.create(folder, "en")
    index.add(passages(count))
    index.commit(count)
    index.close()
    return folder


def test_equal_passages_give_bitwise_equal_scores(tmp_path: Path) -> None:
    queries = [p.text for p in passages(40)]
    results = []
    for name in ("a", "b"):
        index = TantivyIndex.open(built(tmp_path / name, 3000))
        results.append(index.search(queries, 50))
        index.close()
    assert results[0] == results[1]


def test_folder_without_its_last_file_is_not_found(tmp_path: Path) -> None:
    (built(tmp_path / "x") / "index.json").unlink()
    with pytest.raises(NotFound, match="Load the corpus again"):
        TantivyIndex.open(tmp_path / "x")


@pytest.mark.parametrize("damage", ["other release", "truncated metadata", "lost terms", "lost passages"])
def test_damaged_folder_is_rejected(tmp_path: Path, damage: str) -> None:
    folder = built(tmp_path / "x")
    metadata = json.loads((folder / "index.json").read_text())
    if damage == "other release":
        (folder / "index.json").write_text(json.dumps({**metadata, "schema": 0}))
    elif damage == "truncated metadata":
        (folder / "index.json").write_text("{")
    elif damage == "lost terms":
        shutil.rmtree(folder / "terms")
    else:
        (folder / "passages.arrow").write_bytes((folder / "passages.arrow").read_bytes()[:100])
    with pytest.raises(IndexMismatch, match="Load the corpus again"):
        TantivyIndex.open(folder)


def test_uncommitted_index_cannot_be_searched(tmp_path: Path) -> None:
    index = TantivyIndex.create(tmp_path / "x", "en")
    index.add(passages(3))
    with pytest.raises(Conflict):
        index.search(["w1"], 3)
    index.close()
    with pytest.raises(NotFound):
        TantivyIndex.open(tmp_path / "x")


def test_empty_index_has_no_hits(tmp_path: Path) -> None:
    index = TantivyIndex.open(built(tmp_path / "x", 0))
    assert (index.count(), index.search(["w1"], 3), list(index.ids())) == (0, [[]], [[]])
    index.close()


def test_passages_are_fetched_from_any_batch(tmp_path: Path) -> None:
    index, known = TantivyIndex.open(built(tmp_path / "x", 9000)), {p.id: p for p in passages(9000)}
    for step in (1, 7, 8999):
        names = list(known)[::-step]
        assert index.fetch(names) == {name: known[name] for name in names}
    with pytest.raises(NotFound, match="'p9000'"):
        index.fetch(["p1", "p9000", "p2"])
    index.close()


def test_committed_index_writes_nothing_when_its_files_change(tmp_path: Path) -> None:
    folder = built(tmp_path / "x", 3)
    index = TantivyIndex.open(folder)
    time.sleep(0.3)  # tantivy looks at the file when it opens the index, and then every half second
    lock, facts = folder / "terms" / ".tantivy-meta.lock", folder / "terms" / "meta.json"
    lock.unlink(missing_ok=True)
    facts.write_text(facts.read_text() + " ")
    time.sleep(0.8)
    assert not lock.exists() and index.count() == 3
    index.close()
