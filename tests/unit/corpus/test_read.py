from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.support import passages_in, shared_data
from tlm_core.corpus.passages import Passage, build_passage, passage_id
from tlm_core.corpus.read import INFO, CorpusInfo, read_sources, write_corpus
from tlm_core.errors import InvalidDataset, InvalidRequest

ROWS = [{"text": "one text", "source": "here"}, {"text": "zwei Töne"}]
LONG = " ".join(f"W{i}." for i in range(600))


def texts(*sources: Path, **options: object) -> list[str]:
    return [passage.text for passage in read_sources([str(source) for source in sources], **options)]  # type: ignore[arg-type]


def faults(source: Path) -> list[tuple[str, int | None]]:
    with pytest.raises(InvalidDataset) as caught:
        list(read_sources([str(source)]))
    assert all(source.name in fault.message for fault in caught.value.faults)
    return [(fault.code, fault.row) for fault in caught.value.faults]


def written(path: Path, body: str | bytes) -> Path:
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    return path


@pytest.fixture
def jsonl() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


class TestFormats:
    def test_jsonl_gives_its_texts_with_source_or_file_name(self, tmp_path: Path, jsonl: str) -> None:
        path = written(tmp_path / "a.jsonl", "\ufeff" + jsonl + "\n")
        assert list(read_sources([str(path)])) == [
            build_passage("one text", "here"),
            build_passage("zwei Töne", "a.jsonl"),
        ]

    @pytest.mark.parametrize("delimiter", [",", "\t"])
    def test_delimited_files_may_quote_and_hold_line_ends(self, tmp_path: Path, delimiter: str) -> None:
        path = tmp_path / ("a.csv" if delimiter == "," else "a.tsv")
        written(path, f'\ufeffn{delimiter}text\r\n1{delimiter}"a ""b"",\tc\nd"\r\n\r\n2{delimiter}é\r\n')
        assert texts(path) == ['a "b", c d', "é"]

    @pytest.mark.parametrize("delimiter", [";", "|", "\t"])
    @pytest.mark.parametrize("count", [3, 5_000])
    def test_unusual_delimiter_is_inferred_and_reported(self, tmp_path: Path, delimiter: str, count: int) -> None:
        prose = ",\nin two lines of it, with, commas"
        rows = [[str(n), f'"a passage,{delimiter} or {n}{prose}"', "web"] for n in range(count)]
        rows.insert(0, ["id", "text", "source"])
        path = written(tmp_path / "a.csv", "\n".join(delimiter.join(row) for row in rows))
        heard: list[str] = []
        results = list(read_sources([str(path)], notify=heard.append))
        assert len(results) == count and {passage.source for passage in results} == {"web"}
        assert results[1].id == "1" and results[1].text.endswith(f" or 1{prose}")
        assert len(heard) == 1 and "delimiter: " in heard[0]

    def test_parquet_gives_its_texts(self, tmp_path: Path) -> None:
        table = pa.table({"text": pa.array(["a b", None, "c"]).dictionary_encode(), "n": [1, 2, 3]})
        pq.write_table(table, tmp_path / "a.parquet")
        heard: list[str] = []
        assert texts(tmp_path / "a.parquet", notify=heard.append) == ["a b", "c"]
        assert heard == ["a.parquet: skipped 1 row without text"]

    def test_plain_texts_are_cut_across_paragraphs(self, tmp_path: Path) -> None:
        written(tmp_path / "a.md", "\ufeff# Title\r\n\r\nA line\r\nand more.\r\n")
        written(tmp_path / "b.txt", "\n\n".join(["Some words here are a sentence."] * 100))
        pieces = texts(tmp_path)
        assert pieces[0] == "# Title A line and more."
        assert len(pieces) == 1 + 4 and sum(len(piece.split()) for piece in pieces[1:]) == 600

    def test_a_plain_text_without_blank_lines_does_not_need_them(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.txt", "Ein Satz für sich.\n" * 20_000)
        assert sum(len(text.split()) for text in texts(path)) == 80_000

    def test_a_very_long_line_is_not_divided_within_words(self, tmp_path: Path) -> None:
        words = [f"word{i}" for i in range(20_000)]
        assert " ".join(texts(written(tmp_path / "a.txt", " ".join(words)))).split() == words

    @pytest.mark.parametrize("text", ["x" * 200_000, " " + "x" * 200_000, " " * 200_000 + "x"])
    def test_a_very_long_line_keeps_all_characters(self, tmp_path: Path, text: str) -> None:
        assert "".join("".join(texts(written(tmp_path / "a.txt", text))).split()) == text.strip()

    @pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
    def test_packed_files_are_unpacked(self, tmp_path: Path, jsonl: str, pack: type) -> None:
        ending = ".gz" if pack is gzip.compress else ".zst"
        body = pack(jsonl.encode()) + pack(b'{"text": "second frame"}\n')
        assert texts(written(tmp_path / f"a.jsonl{ending}", body)) == ["one text", "zwei Töne", "second frame"]

    @pytest.mark.parametrize("ending", [".gz", ".zst"])
    @pytest.mark.parametrize(
        ("spoil", "code"),
        [(lambda body: body[: len(body) // 2], "cut_file"), (lambda body: b"x" * len(body), "unreadable_file")],
    )
    def test_truncated_or_damaged_packed_file_is_a_data_error(
        self, tmp_path: Path, ending: str, spoil: type, code: str
    ) -> None:
        noise = "".join(hashlib.sha256(str(i).encode()).hexdigest() for i in range(5000))
        pack = gzip.compress if ending == ".gz" else zstandard.compress
        path = written(tmp_path / f"a.txt{ending}", spoil(pack(noise.encode())))
        assert faults(path) == [(code, None)]

    def test_a_folder_is_read_in_the_order_of_its_names(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / ".hidden").mkdir()
        for name in ("sub/c.txt", "b.txt", "a.rst", ".hidden/x.txt", "picture.png"):
            written(tmp_path / name, f"text of {name}")
        heard: list[str] = []
        assert texts(tmp_path, notify=heard.append) == ["text of a.rst", "text of b.txt", "text of sub/c.txt"]
        assert len(heard) == 1 and "picture.png" in heard[0]


class TestColumns:
    @pytest.mark.parametrize("name", ["content", "Body", "passage", "abstract"])
    def test_usual_column_name_is_inferred_and_reported(self, tmp_path: Path, name: str) -> None:
        heard: list[str] = []
        path = written(tmp_path / "a.csv", f"number,{name}\n1,hello\n")
        assert texts(path, notify=heard.append) == ["hello"]
        assert len(heard) == 1 and f"reading '{name}'" in heard[0] and "'number'" in heard[0]

    def test_text_column_option_wins_over_column_text(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.csv", "content,text,x\n1,2,3\n")
        assert texts(path) == ["2"]
        assert texts(path, text_column="x") == ["3"]

    def test_missing_text_column_is_a_data_error(self, tmp_path: Path) -> None:
        assert faults(written(tmp_path / "a.csv", "x,y\n1,2\n")) == [("missing_column", None)]
        assert faults(written(tmp_path / "b.jsonl", '{"x": 1, "y": 2}')) == [("missing_column", 1)]

    def test_doubled_column_is_a_data_error(self, tmp_path: Path) -> None:
        assert faults(written(tmp_path / "a.csv", "text,text\n1,2\n")) == [("doubled_column", None)]

    def test_case_of_source_and_id_does_not_matter(self, tmp_path: Path) -> None:
        table = written(tmp_path / "a.csv", "Text,SOURCE,Id\none,s,mine:1\n")
        lines = written(tmp_path / "b.jsonl", '{"Text": "one", "Source": "s", "ID": "mine:1"}')
        assert list(read_sources([str(table)])) == list(read_sources([str(lines)])) == [Passage("mine:1", "one", "s")]

    def test_empty_cell_of_a_source_means_the_file_name(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.csv", "text,source,id\none,,1\ntwo,s,\n")
        assert list(read_sources([str(path)])) == [build_passage("one", "a.csv"), build_passage("two", "s")]


class TestAsItIs:
    def test_rows_with_id_text_and_source_are_unchanged(self, tmp_path: Path) -> None:
        row = {"id": "mine:1", "text": "kept  as\nit is", "source": "s"}
        path = written(tmp_path / "a.jsonl", json.dumps(row))
        assert list(read_sources([str(path)])) == [Passage("mine:1", "kept  as\nit is", "s")]

    def test_their_texts_have_the_normal_form_of_passages(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", json.dumps({"id": "mine:1", "text": "cafe\u0301", "source": "s"}))
        assert list(read_sources([str(path)])) == [Passage("mine:1", "café", "s")]

    def test_their_long_texts_are_cut_and_get_ids_of_their_own(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", json.dumps({"id": "mine:1", "text": LONG, "source": "s"}))
        passages = list(read_sources([str(path)]))
        assert len(passages) > 2 and all(passage.id == passage_id(passage.text) for passage in passages)

    @pytest.mark.data
    def test_a_corpus_of_passages_comes_through_unchanged(self, tmp_path: Path) -> None:
        path = shared_data() / "corpus" / "scipy_docs-27.parquet"
        expected = [Passage(**row) for row in pq.read_table(path).to_pylist()]
        assert list(read_sources([str(path)])) == expected
        info = write_corpus(iter(expected), tmp_path)
        assert (info.count, info.duplicates_dropped, info.sources) == (1289, 0, {"scipy_docs": 1289})


class TestFaults:
    def test_data_errors_of_all_files_are_reported_with_file_and_row(self, tmp_path: Path) -> None:
        written(tmp_path / "a.jsonl", '{"text": "ok"}\nnonsense\n[1]\n{"text": 5}\n{"other": "x"}\n' + "[" * 100_000)
        written(tmp_path / "b.csv", "text,n\nfine,1\nfive,5,5\n")
        with pytest.raises(InvalidDataset) as caught:
            texts(tmp_path)
        results = [(fault.code, fault.row) for fault in caught.value.faults]
        assert results == [
            ("malformed_row", 2),
            ("malformed_row", 3),
            ("not_text", 4),
            ("missing_column", 5),
            ("cut_row", 6),
            ("malformed_row", 2),
        ]
        assert "6 data errors" in caught.value.message and "ow 2 of a.jsonl" in caught.value.message
        assert "ow 2 of b.csv" in caught.value.faults[-1].message

    def test_no_passage_follows_a_data_error(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", '{"text": "before"}\n{"text": 1}\n{"text": "after"}\n')
        given = []
        with pytest.raises(InvalidDataset):
            given += [passage.text for passage in _noting(read_sources([str(path)]), given)]
        assert given == ["before"]

    def test_reading_stops_at_100_data_errors(self, tmp_path: Path) -> None:
        assert len(faults(written(tmp_path / "a.jsonl", "x\n" * 5000))) == 100

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
    @pytest.mark.parametrize("body", ["text\nM\xfcnchen\n".encode("latin-1"), "text\nhello\n".encode("utf-16")])
    def test_other_encodings_are_data_errors(self, tmp_path: Path, name: str, body: bytes) -> None:
        assert "bad_encoding" in [code for code, _ in faults(written(tmp_path / name, body))]

    def test_escaped_lone_surrogates_are_replaced(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", '{"text": "a \\udc80 b"}\n{"text": "a \\ud83d b"}\n')
        assert texts(path) == ["a \ufffd b"] * 2

    def test_invalid_bytes_in_parquet_are_a_data_error(self, tmp_path: Path) -> None:
        column = pa.array([b"fine", b"M\xfcnchen"]).view(pa.string())
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        assert faults(tmp_path / "a.parquet") == [("bad_encoding", 2)]

    def test_open_quote_is_a_data_error(self, tmp_path: Path) -> None:
        assert faults(written(tmp_path / "a.csv", 'text\nfine\n"open\nnext\n')) == [("cut_row", 2)]

    @pytest.mark.parametrize("body", [b"", b"PAR1 is not enough", b"PAR1" + b"\0" * 100 + b"PAR1"])
    def test_damaged_parquet_file_is_a_data_error(self, tmp_path: Path, body: bytes) -> None:
        assert faults(written(tmp_path / "a.parquet", body)) == [("unreadable_file", None)]

    def test_column_of_numbers_is_a_data_error(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
        assert faults(tmp_path / "a.parquet") == [("not_text", 1), ("not_text", 2)]

    def test_missing_path_unknown_type_and_empty_folder_are_rejected(self, tmp_path: Path) -> None:
        written(tmp_path / "a.pdf", "x")
        for source in (tmp_path / "none", tmp_path / "a.pdf", tmp_path):
            with pytest.raises(InvalidRequest, match=source.name):
                texts(source)


class TestCorpusFolder:
    def test_what_is_written_is_read_again_and_described(self, tmp_path: Path) -> None:
        passages = [build_passage(f"text number {i}", f"s{i % 2}") for i in range(25)]
        info = write_corpus(iter([*passages, passages[3]]), tmp_path, "de")
        ids = "".join(f"{passage.id}\n" for passage in passages)
        assert info == CorpusInfo(
            count=25,
            words=75,
            language="de",
            version=hashlib.sha256(f"{ids}de".encode()).hexdigest()[:16],
            sources={"s0": 13, "s1": 12},
            duplicates_dropped=1,
        )
        assert CorpusInfo.model_validate_json((tmp_path / INFO).read_bytes()) == info
        assert passages_in(tmp_path) == passages

    def test_rows_are_spread_over_files_in_order(self, tmp_path: Path) -> None:
        write_corpus((build_passage(f"t{i}", "s") for i in range(100_001)), tmp_path)
        sizes = [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("*.parquet"))]
        assert sizes == [100_000, 1]
        assert pq.read_schema(tmp_path / "passages-00001.parquet").names == ["id", "text", "source"]
        assert [passage.text for passage in passages_in(tmp_path)][-2:] == ["t99999", "t100000"]

    def test_the_version_follows_order_language_and_the_text_behind_a_given_id(self, tmp_path: Path) -> None:
        a, b = build_passage("a", "s"), build_passage("b", "s")
        variants = [([a, b], "en"), ([b, a], "en"), ([a, b], "de"), ([Passage("x", "a", "s")], "en")]
        variants.append(([Passage("x", "b", "s")], "en"))
        versions = {write_corpus(iter(rows), tmp_path, language).version for rows, language in variants}
        assert len(versions) == len(variants)

    def test_one_id_for_two_texts_is_a_data_error(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidDataset, match="The id 'x' has two texts"):
            write_corpus(iter([Passage("x", "a", "s"), Passage("x", "b", "s")]), tmp_path)

    def test_digest_of_one_text_as_id_of_another_is_a_data_error(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidDataset, match="has two texts"):
            write_corpus(iter([build_passage("a", "s"), Passage(passage_id("a"), "b", "s")]), tmp_path)

    def test_ids_that_differ_only_at_their_end_are_valid(self, tmp_path: Path) -> None:
        assert write_corpus((Passage(f"{i:032x}", f"t{i}", "s") for i in range(3)), tmp_path).count == 3

    def test_a_corpus_without_passages_is_refused(self, tmp_path: Path) -> None:
        written(tmp_path / "a.csv", "text\n")
        with pytest.raises(InvalidDataset, match="no passage"):
            write_corpus(read_sources([str(tmp_path / "a.csv")]), tmp_path / "out")

    def test_a_failed_rewrite_leaves_the_old_corpus_whole(self, tmp_path: Path) -> None:
        old = write_corpus(iter([build_passage("old", "s")]), tmp_path)
        bad = written(tmp_path / "bad.jsonl", '{"text": "new"}\n{"text": 1}\n')
        with pytest.raises(InvalidDataset):
            write_corpus(read_sources([str(bad)]), tmp_path)
        assert CorpusInfo.model_validate_json((tmp_path / INFO).read_bytes()) == old
        assert [passage.text for passage in passages_in(tmp_path)] == ["old"]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "bad.jsonl",
            "corpus.json",
            "passages-00000.parquet",
        ]

    def test_a_corpus_can_be_rewritten_from_itself(self, tmp_path: Path) -> None:
        first = write_corpus((build_passage(f"t{i}", "s") for i in range(30)), tmp_path)
        assert write_corpus(read_sources([str(tmp_path)]), tmp_path) == first


def _noting(passages: Iterator[Passage], seen: list[str]) -> Iterator[Passage]:
    for passage in passages:
        seen.append(passage.text)
        yield passage
