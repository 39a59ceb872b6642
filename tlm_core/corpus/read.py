"""Read sources as passages, and write them to a corpus folder.

A corpus folder holds `passages-00000.parquet`, … (`id`, `text`, `source`) and `corpus.json`, written last.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tlm_core.artifacts import canonical_json, storage_errors
from tlm_core.corpus.files import SUPPORTED, Notify, Row, format_of, read_paragraphs, read_rows
from tlm_core.corpus.hub import stream_hub
from tlm_core.corpus.near import NearDuplicates
from tlm_core.corpus.passages import (
    LONGEST,
    Passage,
    SeenKeys,
    build_passage,
    cut,
    cut_stream,
    encodable,
    keys_of,
    passage_id,
    word_count,
)
from tlm_core.corpus.remote import RemoteFile, is_address, list_remote
from tlm_core.errors import CorruptArtifact, Fault, InvalidDataset, InvalidRequest
from tlm_core.names import HUB
from tlm_core.parquet import open_parquet
from tlm_core.tables.findings import LISTED_PER_CODE, Findings
from tlm_core.wording import counted

INFO = "corpus.json"
ROWS_PER_FILE = 100_000
_BATCH = 10_000
# Passages with ids come from programs with another definition of a word. Only much longer passages are cut again.
_LONGEST_UNCUT = 2 * LONGEST


class CorpusInfo(BaseModel):
    """The contents of a corpus folder. words: sum of `word_count`. sources: source → number of passages.

    near_duplicates_dropped: None if near duplicates were not searched. version: first 16 hex digits of the SHA-256 of
    the ids, in order, and the language. An id that is not the `passage_id` of its text counts with this `passage_id`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    count: int
    words: int
    language: str
    version: str
    sources: dict[str, int]
    duplicates_dropped: int
    near_duplicates_dropped: int | None = None


def read_sources(
    sources: Sequence[str], *, text_column: str | None = None, notify: Notify | None = None
) -> Iterator[Passage]:
    """Yield the passages of files, folders, addresses (`s3://…`) and hub datasets, in the order of `sources`.

    The name of a hub dataset is `hub:OWNER/NAME[:config][:split]`. The files of a folder are sorted by name. Formats:
    jsonl, csv, tsv, parquet, txt, md and rst; all except parquet also as .gz or .zst. Texts have the normal form NFC.
    Long texts are cut. The text of a row with `id` and `source` is cut only above 500 words. notify: receives a note
    for each inferred column and each kind of skipped input.

    Yields no passage after the first data error. Raises InvalidDataset with all data errors after the last source, or
    at the 100th. Raises InvalidRequest for a source that does not exist or has no readable file. A hub dataset also
    raises NotFound and Unavailable. An address also raises NotFound, StorageUnavailable, and MissingDependency if its
    protocol needs a package that is not installed.
    """
    return chain.from_iterable(source_files(sources, text_column=text_column, notify=notify))


def source_files(
    sources: Sequence[str], *, text_column: str | None = None, notify: Notify | None = None, skip: int = 0,
    scratch: Path | None = None,
) -> Iterator[Iterator[Passage]]:  # fmt: skip
    """Yield an iterator of passages for each file of the sources, after the first `skip` files.

    The caller must read each file to its end before the next one. After a data error, this function checks the later
    files but does not yield them, so that InvalidDataset has all data errors. scratch: folder for copies of remote
    files. A hub dataset counts as one file. Raises the errors of `read_sources`.
    """
    findings = Findings("the corpus files", stop_at=LISTED_PER_CODE, notify=notify)
    files = [file for source in sources for file in _files(source, findings.note, scratch)][skip:]
    for number, file in enumerate(files, start=1):
        yield _read_file(file, text_column, findings)
        if not findings.ok:
            for later in files[number:]:
                deque(_read_file(later, text_column, findings), maxlen=0)
            break
    findings.check()


def _read_file(file: str | RemoteFile | Path, text_column: str | None, findings: Findings) -> Iterator[Passage]:
    if isinstance(file, str):
        yield from _passages(stream_hub(file, text_column, findings), file, findings)
        return
    with file.local() if isinstance(file, RemoteFile) else nullcontext(file) as path:
        if format_of(path) == "plain":
            cuts = (build_passage(text, path.name) for text in cut_stream(read_paragraphs(path, findings)))
            yield from (passage for passage in cuts if findings.ok)
        else:
            yield from _passages(read_rows(path, text_column, findings), path.name, findings)


def _files(source: str, note: Notify, scratch: Path | None) -> Sequence[str | RemoteFile | Path]:
    """Return the files of a source: the name of a hub dataset, files at an address, or local files."""
    if source.startswith(HUB):
        return [source]
    return list_remote(source, note, scratch) if is_address(source) else _local_files(Path(source), note)


def _local_files(path: Path, note: Notify) -> list[Path]:
    if not path.exists():
        raise InvalidRequest(f"There is no file or folder '{path}'. Check the path.")
    if path.is_file():
        if format_of(path) is None:
            raise InvalidRequest(f"Unsupported file type: '{path.name}'. {SUPPORTED}")
        return [path]
    visible = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    files = [file for file in visible if format_of(file)]
    if not files:
        raise InvalidRequest(f"The folder '{path}' contains no file of a supported type. {SUPPORTED}")
    if others := [file.name for file in visible if not format_of(file) and file.name != INFO]:
        note(f"{path}: skipped {counted(len(others), 'file')} of other types, such as '{others[0]}'")
    return files


def _passages(rows: Iterable[Row], name: str, findings: Findings) -> Iterator[Passage]:
    for row in rows:
        if not findings.ok:
            continue
        source = encodable(str(row.source)) if row.source is not None else name
        if row.source is not None and isinstance(row.id, str) and word_count(row.text) <= _LONGEST_UNCUT:
            yield Passage(encodable(row.id), unicodedata.normalize("NFC", encodable(row.text)), source)
        else:
            yield from (build_passage(piece, source) for piece in cut(row.text))


def write_corpus(
    passages: Iterable[Passage], folder: Path, language: str = "en", near: NearDuplicates | None = None
) -> CorpusInfo:
    """Write `passages` to `folder` without exact duplicates. At the end, replace an earlier corpus in `folder`.

    near: a filter that also drops near duplicates of earlier passages. Raises StorageFull, StorageUnavailable, and
    InvalidDataset if there is no passage or if one id has two texts.
    """
    with storage_errors(f"writing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, "passages-*.parquet.part")
    tally = _Tally(language)
    try:
        distinct = _distinct(passages, tally)
        parts = write_parts(tally.watch(_unlike(distinct, near) if near else distinct), folder)
        if not parts:
            fault = Fault("empty", "The corpus has no passage: no source has any text. Add files with texts.")
            raise InvalidDataset(fault.message, [fault])
        info = tally.info(near.dropped if near else None)
        with storage_errors(f"writing {folder}"):
            # A folder without corpus.json is not a corpus. So nothing reads a mixture of old and new files.
            _clear(folder, INFO, "passages-*.parquet")
            for part in parts:
                part.rename(part.with_suffix(""))
            (folder / INFO).write_text(canonical_json(info.model_dump(mode="json")), encoding="utf-8")
        return info
    finally:
        _clear(folder, "passages-*.parquet.part")


def read_parts(folder: Path) -> Iterator[Passage]:
    """Yield the passages that `write_parts` wrote to a folder. Raises CorruptArtifact."""
    import pyarrow as pa

    for path in sorted(folder.glob("passages-*.parquet.part")):
        try:
            with open_parquet(path) as file:
                for batch in file.iter_batches(_BATCH, columns=list(Passage._fields)):
                    columns = (batch.column(name).to_pylist() for name in Passage._fields)
                    yield from (Passage(*values) for values in zip(*columns, strict=True))
        except (pa.ArrowException, OSError) as error:
            raise CorruptArtifact(f"Cannot read {path}: {error}. Add the corpus again.") from error


class _Tally:
    """Counts the passages, words and sources of a stream, and computes its corpus version."""

    def __init__(self, language: str) -> None:
        self.dropped = 0
        self._language = language
        self._words = 0
        self._sources: Counter[str] = Counter()
        self._version = hashlib.sha256()

    def watch(self, passages: Iterable[tuple[Passage, str]]) -> Iterator[Passage]:
        for passage, digest in passages:
            # Only an id that is the digest of its text identifies the text. For other ids, the version includes both.
            named = passage.id if passage.id == digest else f"{passage.id}\t{digest}"
            self._version.update(f"{named}\n".encode())
            self._words += word_count(passage.text)
            self._sources[passage.source] += 1
            yield passage

    def info(self, near_dropped: int | None) -> CorpusInfo:
        version = self._version.copy()
        version.update(self._language.encode())
        return CorpusInfo(
            count=self._sources.total(),
            words=self._words,
            language=self._language,
            version=version.hexdigest()[:16],
            sources=dict(sorted(self._sources.items())),
            duplicates_dropped=self.dropped,
            near_duplicates_dropped=near_dropped,
        )


def _distinct(passages: Iterable[Passage], tally: _Tally) -> Iterator[tuple[Passage, str]]:
    """Yield each passage with a new text, and the `passage_id` of this text. Raises InvalidDataset if an id repeats."""
    texts, ids = SeenKeys(), SeenKeys()
    stream = iter(passages)
    while batch := list(islice(stream, _BATCH)):
        digests = [passage_id(passage.text) for passage in batch]
        new = texts.add(keys_of(digests))
        distinct = [(passage, digest) for passage, digest, fresh in zip(batch, digests, new, strict=True) if fresh]
        tally.dropped += len(batch) - len(distinct)
        unused = ids.add(keys_of(passage_id(passage.id) for passage, _ in distinct))
        if not unused.all():
            repeated = [passage.id for (passage, _), fresh in zip(distinct, unused, strict=True) if not fresh]
            message = "The id '{}' has two texts. Give each text its own id, or remove the column 'id'."
            faults = [Fault("id_twice", message.format(name), column="id") for name in repeated]
            raise InvalidDataset(faults[0].message, faults)
        yield from distinct


def _unlike(passages: Iterator[tuple[Passage, str]], near: NearDuplicates) -> Iterator[tuple[Passage, str]]:
    while batch := list(islice(passages, _BATCH)):
        unique = near.select_new([passage.text for passage, _ in batch])
        yield from (pair for pair, stays in zip(batch, unique.tolist(), strict=True) if stays)


def write_parts(passages: Iterator[Passage], folder: Path) -> list[Path]:
    """Write files of ROWS_PER_FILE passages each, with the suffix `.part`. Return their paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in Passage._fields])
    parts: list[Path] = []
    batch = list(islice(passages, _BATCH))
    while batch:
        parts.append(folder / f"passages-{len(parts):05d}.parquet.part")
        with storage_errors(f"writing {folder}"):
            writer = pq.ParquetWriter(parts[-1], schema, compression="zstd")
        with writer:
            for _ in range(ROWS_PER_FILE // _BATCH):
                columns = [list(values) for values in zip(*batch, strict=True)]
                with storage_errors(f"writing {folder}"):
                    writer.write_table(pa.table(columns, schema=schema))
                if not (batch := list(islice(passages, _BATCH))):
                    break
    return parts


def _clear(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            path.unlink()
