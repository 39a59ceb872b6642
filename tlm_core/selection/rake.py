"""Key phrases of a text by RAKE (Rose, Engel, Cramer and Cowley 2010), as the TLM release offers them for queries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

PHRASES = 20
_PIECE = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\s\w]")
_STOP_WORDS = """
a about above after again against all almost also although always am among an and another any are as at be because
been before being below between both but by can cannot could did do does doing done down due during each either else
enough ever every few for from further had has have having he hence her here hers herself him himself his how
however i if in into is it its itself just least less let like made make many may me might mine more most much must
my myself neither never no nor not now of off often on once one only onto or other others our ours ourselves out
over own per perhaps quite rather really same seem seems shall she should since so some such than that the their
theirs them themselves then there therefore these they this those though through thus to together too toward towards
under until up upon us use used using very via was we well were what when where whether which while who whom whose
why will with within without would yet you your yours yourself yourselves
"""
_STOP = frozenset(_STOP_WORDS.split())


def key_phrases(text: str) -> list[str]:
    """The PHRASES best phrases of an English text, best first, in lower case.

    A phrase is a run of words between stop words and punctuation. A word is worth its degree (the words of all phrases
    it stands in) over its frequency, a phrase the sum of its words. Equal ones go by the alphabet.
    """
    phrases = Counter(_phrases(text))
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for phrase, count in phrases.items():
        for word in phrase:
            frequency[word] += count
            degree[word] += count * len(phrase)
    worth = {phrase: sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
    return [" ".join(phrase) for phrase in sorted(worth, key=lambda phrase: (-worth[phrase], phrase))[:PHRASES]]


def _phrases(text: str) -> Iterator[tuple[str, ...]]:
    held: list[str] = []
    for piece in _PIECE.findall(text.lower()):
        if piece in _STOP or not piece[0].isalnum():
            if held:
                yield tuple(held)
            held = []
        else:
            held.append(piece)
    if held:
        yield tuple(held)
