from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tlm_core.errors import CorruptArtifact
from tlm_core.training.packing import PassageStream, Rows, first_fit, pack
from tlm_core.training.store import StoreWriter, TokenStore

LENGTH = 16


def store_of(folder: Path, documents: list[list[int]]) -> TokenStore:
    with StoreWriter(folder, "made", vocab_size=1000) as writer:
        for begin in range(0, len(documents), 3):
            writer.add(documents[begin : begin + 3])
    return TokenStore(folder, "made")


@pytest.fixture
def documents() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [[100 + number] * int(random.integers(1, 40)) for number in range(20)]


@pytest.fixture
def stream(tmp_path: Path, documents: list[list[int]]) -> PassageStream:
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(len(documents))

    return PassageStream(store_of(tmp_path, documents), LENGTH, order)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (2, 5), (7, 40)])
def test_stream_counts_the_texts_of_its_rows(stream: PassageStream, first: int, count: int) -> None:
    rows = stream.rows(first, count)
    row, segment = rows.texts
    assert stream.texts(first, count) == len(rows.lengths) == len(row)
    counted = [int((rows.segments[r] == s).sum()) for r, s in zip(row, segment, strict=True)]
    assert counted == rows.lengths.tolist()


def test_store_returns_its_documents_and_uses_two_bytes_for_small_ids(
    tmp_path: Path, documents: list[list[int]]
) -> None:
    store = store_of(tmp_path, documents)
    assert [list(store[i]) for i in range(len(store))] == documents
    assert store.tokens.dtype == np.uint16
    with StoreWriter(tmp_path, "large", vocab_size=70_000) as writer:
        writer.add([[69_999]])
    assert list(TokenStore(tmp_path, "large")[0]) == [69_999]


def test_truncated_store_is_rejected(tmp_path: Path, documents: list[list[int]]) -> None:
    store_of(tmp_path, documents)
    np.save(tmp_path / "made.tokens.npy", np.zeros(3, dtype=np.uint16))
    with pytest.raises(CorruptArtifact, match="truncated"):
        TokenStore(tmp_path, "made")


def test_two_epochs_contain_every_token_twice_without_padding(
    stream: PassageStream, documents: list[list[int]]
) -> None:
    total = sum(map(len, documents))
    rows = stream.rows(0, -(-2 * total // LENGTH))
    assert rows.real_tokens == rows.tokens.size
    counts = np.bincount(rows.tokens.reshape(-1)[: 2 * total], minlength=120)[100:]
    assert counts.tolist() == [2 * len(document) for document in documents]


def test_rows_depend_only_on_their_number(stream: PassageStream) -> None:
    whole = stream.rows(0, 40)
    for first in (33, 7, 0, 12):  # in any order, across epochs
        part = stream.rows(first, 5)
        for name in ("tokens", "segments", "positions"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[first : first + 5]), name


def test_rows_start_with_segment_one_and_position_zero(stream: PassageStream) -> None:
    rows = stream.rows(3, 20)
    assert (rows.segments[:, 0] == 1).all() and (rows.positions[:, 0] == 0).all()
    for tokens, segments, positions in zip(rows.tokens, rows.segments, rows.positions, strict=True):
        change = np.flatnonzero(np.diff(segments)) + 1
        assert set(change) >= set(np.flatnonzero(np.diff(tokens)) + 1)
        assert (positions[change] == 0).all()
        steady = np.setdiff1d(np.arange(1, LENGTH), change)
        assert (positions[steady] == positions[steady - 1] + 1).all()


def test_stream_names_the_documents_of_its_rows(stream: PassageStream) -> None:
    rows = stream.rows(5, 2)
    assert sorted({100 + number for number in stream.documents(5, 2)}) == sorted(set(rows.tokens.reshape(-1)))


def test_first_fit_packs_every_item_within_the_size() -> None:
    lengths = [5, 9, 3, 16, 7, 7, 2, 1]
    bins = first_fit(lengths, 16)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in members) <= 16 for members in bins)
    assert len(bins) == 4


def _document(rows: Rows, number: int) -> tuple[list[int], list[int]]:
    place = int(np.flatnonzero(rows.documents == number)[0])
    inside = rows.segments[rows.doc_row[place]] == rows.doc_segment[place]
    return rows.tokens[rows.doc_row[place]][inside].tolist(), rows.types[rows.doc_row[place]][inside].tolist()


def test_packed_texts_stay_whole_with_pair_types(tmp_path: Path) -> None:
    texts = [[1, 2, 3, 4], [5, 6], [7] * 16, [8, 9, 10]]
    store = store_of(tmp_path, texts)
    rows = pack(store, np.array([3, 0, 2]), LENGTH, second=np.array([2, 1, 9, 3]), pad=0)
    assert len(rows) == 2
    assert _document(rows, 0) == ([1, 2, 3, 4], [0, 0, 1, 1])
    assert _document(rows, 3) == ([8, 9, 10], [0, 0, 0])
    assert _document(rows, 2) == ([7] * 16, [0] * 9 + [1] * 7)
    assert rows.real_tokens == 23


def test_parts_of_rows_contain_their_documents(tmp_path: Path) -> None:
    store = store_of(tmp_path, [[number] * 9 for number in range(1, 6)])
    rows = pack(store, np.arange(5), LENGTH)
    numbers = []
    for start in range(0, len(rows), 2):
        part = rows.part(start, start + 2)
        for number in part.documents:
            assert _document(part, int(number))[0] == [number + 1] * 9
            numbers.append(int(number))
    assert sorted(numbers) == list(range(5))


def test_stream_can_name_passages_while_a_thread_draws_others(tmp_path: Path, documents: list[list[int]]) -> None:
    class Interrupted(TokenStore):
        """Another thread reads the first epoch between two documents."""

        def __getitem__(self, index: int) -> np.ndarray:
            other, Interrupted.other = Interrupted.other, None
            if other is not None:
                other.documents(0, 1)
            return super().__getitem__(index)

        other: PassageStream | None = None

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(len(documents))

    store = store_of(tmp_path, documents)
    later = sum(map(len, documents)) // LENGTH + 2  # in the second epoch
    expected = PassageStream(store, LENGTH, order).documents(later, 5)
    interrupted = PassageStream(Interrupted(tmp_path, "made"), LENGTH, order)
    Interrupted.other = interrupted
    assert interrupted.documents(later, 5) == expected
