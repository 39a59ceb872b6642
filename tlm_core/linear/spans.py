"""Texts with two marked spans, such as the two entities of a relation: `the [[ parser ]] uses << beam search >>`.

A linear model reads each span, and the words between them, as separate texts. The word n-grams of the whole text do not
show whether a word is inside a span.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_OPENING = re.compile(r"\[\[|<<|\{\{|<\w+>|\[\w+\]")  # the last two alternatives are tags, such as <e1> and [E1]
_BRACKETS = {"[[": "]]", "<<": ">>", "{{": "}}"}
MARKED_SHARE = 0.95  # minimum share of the train texts with the marks; rarer marks do not belong to the task
_LONGEST_GAP = 10  # maximum of the added word that states the number of words between the spans

Marks = tuple[str, ...]  # the opening marks of both spans, or none


def _closing(mark: str) -> str:
    return _BRACKETS.get(mark) or f"{mark[0]}/{mark[1:]}"


def _span(text: str, mark: str) -> tuple[int, int] | None:
    """Return start and end of the content of the only span with this opening mark; None for no or several spans."""
    closing = _closing(mark)
    if text.count(mark) != 1 or text.count(closing) != 1:
        return None
    begin, end = text.index(mark) + len(mark), text.index(closing)
    return (begin, end) if begin <= end else None


def learn_marks(texts: Iterable[str]) -> Marks:
    """Return the opening marks of two spans, such as ("<<", "[["), if nearly all texts have each span once, else ()."""
    counts, total = Counter[str](), 0
    for text in texts:
        total += 1
        counts.update(mark for mark in set(_OPENING.findall(text)) if _span(text, mark))
    common = sorted(mark for mark, count in counts.items() if count >= MARKED_SHARE * total)
    return tuple(common) if len(common) == 2 else ()


def split_spans(text: str, marks: Marks) -> tuple[str, str, str]:
    """Return the contents of both spans, and the words between the spans. Without both spans, return empty texts.

    The third text begins with two added words: the mark of the first span, and the number of words between the spans.
    """
    spans = [(span, mark) for mark in marks if (span := _span(text, mark))]
    if len(spans) < 2:
        return "", "", ""
    contents = [text[begin:end] for (begin, end), _ in spans]
    ((_, end), first), ((begin, _), second) = sorted(spans)
    between = text[end + len(_closing(first)) : max(end, begin - len(second))].split()
    return contents[0], contents[1], " ".join([first, str(min(len(between), _LONGEST_GAP)), *between])
