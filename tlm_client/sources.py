"""What lies on this machine, made ready to be sent: a data set's files by split, a corpus as passages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tlm_client.display import Display
from tlm_core.errors import InvalidRequest

if TYPE_CHECKING:
    from tlm_core.corpus.passages import Passage

_TOLD_PASSAGES = 2_000


def dataset_files(path: Path, *, say: Callable[[str], None]) -> dict[str, Path]:
    """The files of a data set by split: of a folder as its file names tell, or one file for all.

    A file of the folder that is named `selection` or `external` goes along as the part `selection`. say: takes what
    was guessed and which files were left out, which the gateway never sees and cannot put into the report.

    Raises InvalidRequest and InvalidDataset.
    """
    from tlm_core.selection.given import GIVEN_PART, given_part
    from tlm_core.tasks.findings import Findings
    from tlm_core.tasks.read import find_splits

    if path.is_file():
        return {"file": path}
    if not path.is_dir():
        raise InvalidRequest(f"there is no file or folder '{path}'; check the path, or write hub:OWNER/NAME")
    findings = Findings()
    found = find_splits(path, findings)
    if not findings.ok:
        raise findings.error()
    for note in findings.notes:
        say(note)
    selection = given_part(path)
    return found if selection is None else {**found, GIVEN_PART: selection}


@contextmanager
def corpus_files(
    sources: Sequence[str],
    *,
    language: str,
    display: Display,
    text_column: str | None = None,
    limit: int | None = None,
) -> Iterator[list[Path]]:
    """Files of passages made of `sources` (none: of the documentation of the installed packages).

    A folder that holds passages already is sent as it is, unless something of it is to be left out. Equal passages are
    dropped here, near duplicates behind the gateway. Raises InvalidRequest, InvalidDataset, StorageFull.
    """
    from tlm_core.corpus.read import INFO, read_sources, write_corpus

    if len(sources) == 1 and (Path(sources[0]) / INFO).is_file() and limit is None:
        yield sorted(Path(sources[0]).glob("passages-*.parquet"))
        return
    with tempfile.TemporaryDirectory(prefix="tlm-corpus-") as folder:
        if sources:
            passages = read_sources(sources, text_column=text_column, say=display.line)
        else:
            from tlm_core.corpus.packages import passages_from_packages

            passages = passages_from_packages(progress=lambda done, total: display.update("reading", done, total, ""))
        counted = _counted(islice(passages, limit), display, quiet=not sources)
        info = write_corpus(counted, Path(folder), language)
        display.line(f"{info.count:,} passages, {info.words:,} words, {info.duplicates_dropped:,} duplicates dropped")
        yield sorted(Path(folder).glob("passages-*.parquet"))


def _counted(passages: Iterable[Passage], display: Display, *, quiet: bool) -> Iterator[Passage]:
    for count, passage in enumerate(passages, 1):
        if not quiet and count % _TOLD_PASSAGES == 0:
            display.update("cutting", 0, 0, f"{count:,} passages")
        yield passage
