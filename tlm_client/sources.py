"""Prepare local data for an upload: dataset files by split, and corpus files with passages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tlm_client.display import Display
from tlm_core.errors import InvalidRequest

if TYPE_CHECKING:
    from tlm_core.corpus.passages import Passage

_PASSAGES_PER_UPDATE = 2_000


def dataset_files(path: Path, *, notify: Callable[[str], None]) -> dict[str, Path]:
    """Return a mapping from split to file, inferred from the names in a folder. A single file has the key `file`.

    A file named `selection`, `external` or `SCALE_external` has the key `selection`. notify: receives inferred settings
    and skipped files, because the gateway's report cannot contain them. Raises InvalidRequest if `path` does not exist
    or has two selections, and InvalidDataset if the names of the files do not determine the splits.
    """
    if path.is_file():
        return {"file": path}
    if not path.is_dir():
        raise InvalidRequest(f"No file or folder '{path}'. Check the path, or use hub:OWNER/NAME.")
    from tlm_core.selection.given import GIVEN_PART, given_part
    from tlm_core.tables.findings import Findings
    from tlm_core.tasks.split_files import select_splits

    findings = Findings()
    files = select_splits(path, findings)
    if not findings.ok:
        raise findings.error()
    for note in findings.notes:
        notify(note)
    selection = given_part(path)
    return files if selection is None else {**files, GIVEN_PART: selection}


@contextmanager
def corpus_files(
    sources: Sequence[str], *, language: str, display: Display, text_column: str | None = None, limit: int | None = None
) -> Iterator[list[Path]]:
    """Yield corpus files with the passages of `sources`, without exact duplicates. The service drops near duplicates.

    sources: see `read_sources`; if empty, the documentation of the installed packages. limit: maximum number of
    passages. If `sources` is one folder of corpus files and `limit` is None, yield these files.

    Raises StorageFull, and what `read_sources` raises.
    """
    from tlm_core.corpus.read import INFO, read_sources, write_corpus

    if len(sources) == 1 and (Path(sources[0]) / INFO).is_file() and limit is None:
        yield sorted(Path(sources[0]).glob("passages-*.parquet"))
        return
    with tempfile.TemporaryDirectory(prefix="tlm-corpus-") as folder:
        if sources:
            passages = _with_progress(read_sources(sources, text_column=text_column, notify=display.line), display)
        else:
            from tlm_core.corpus.packages import passages_from_packages

            passages = passages_from_packages(progress=partial(display.update, "reading"))
        info = write_corpus(islice(passages, limit), Path(folder), language)
        display.line(f"{info.count:,} passages, {info.words:,} words, {info.duplicates_dropped:,} duplicates dropped")
        yield sorted(Path(folder).glob("passages-*.parquet"))


def _with_progress(passages: Iterable[Passage], display: Display) -> Iterator[Passage]:
    for count, passage in enumerate(passages, 1):
        if count % _PASSAGES_PER_UPDATE == 0:
            display.update("cutting", 0, 0, f"{count:,} passages")
        yield passage
