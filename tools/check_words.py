"""Report identifiers, phrases and long sentences that CONTRIBUTING.md bans, with file and line.

Run it with `python -m tools.check_words`. `make check` also runs it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator

from tools import ROOT, tracked_files

# A name must say what it holds.
BANNED_IDENTIFIERS = frozenset(
    (
        *("asked", "found", "foretold", "heed", "kept", "made", "mend", "mended", "one", "ones"),
        *("reckon", "reckoned", "said", "strange", "taken", "tell", "tells", "told"),
    )
)
BANNED_PHRASES = re.compile(
    r"\b(anew|beforehand|foretell|foretold|goes on where|handed out|hands? out|hangs? on|heeds?|is no kind|is none of|"
    r"mends?|mended|none of the form|of its own accord|reckon(?:s|ed)?|stands? beside|tells? of|told|whose sake)\b",
    re.IGNORECASE,
)
LONGEST_SENTENCE = 25  # words, in Markdown
# Where one paragraph of Markdown ends: at an empty line, a list item, a table row, a heading or a block of code.
_BREAK = re.compile(r"\n(?=\s*(?:[-*|#>]|\d+\.|\n|$))")
_NO_PROSE = re.compile(r"```.*?```|^\s*[|#<].*?$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")
# These files must name the banned words.
EXEMPT = frozenset({"tools/check_words.py", "CONTRIBUTING.md"})


def sources(*patterns: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each tracked file that matches `patterns`, without exempt and vendored files."""
    for path in tracked_files(*patterns):
        name = str(path.relative_to(ROOT))
        if name not in EXEMPT and "vendor" not in name:
            yield name, path.read_text(encoding="utf-8")


def identifiers(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each definition: functions, classes, arguments and assigned variables."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each comment and string of Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def long_sentences(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each sentence with too many words. A colon or semicolon ends a sentence too."""
    text = _NO_PROSE.sub(lambda match: "\n" * match[0].count("\n"), markdown)
    start = 0
    for paragraph in _BREAK.split(text):
        for sentence in _SENTENCE_END.split(_LINK.sub(r"\1", paragraph)):
            if len(sentence.split()) > LONGEST_SENTENCE:
                yield text.count("\n", 0, start) + 1, " ".join(sentence.split())
        start += len(paragraph) + 1


def violations() -> Iterator[str]:
    """Yield `file:line: message` for each banned identifier or phrase, and each long sentence."""
    for name, source in sources("*.py"):
        for line, identifier in identifiers(source):
            if identifier.strip("_").lower() in BANNED_IDENTIFIERS:
                yield f"{name}:{line}: The name '{identifier}' says too little. Choose a specific noun or verb."
    for name, source in sources("*.md"):
        for line, sentence in long_sentences(source):
            words = len(sentence.split())
            yield f"{name}:{line}: '{sentence[:60]}…' has {words} words. Use at most {LONGEST_SENTENCE}."
    for name, source in sources("*.py", "*.md", "*.html", "*.lua", "*.yaml", "*.yml", "Makefile"):
        for line, text in prose(source) if name.endswith(".py") else enumerate(source.splitlines(), 1):
            if match := BANNED_PHRASES.search(text):
                yield f"{name}:{line}: '{match[0]}' is not plain English here. See the style rules in CONTRIBUTING.md."


def main() -> int:
    """Print the violations. Return the exit status: 1 if there are any, else 0."""
    lines = list(violations())
    print(*lines, sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
