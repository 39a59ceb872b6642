"""Split texts into terms. Every index uses the same analysis for the same language.

`standard` equals Lucene's standard analyzer. Its terms are the words of Unicode Annex 29 in lower case. An apostrophe
between letters, and a point or comma between digits, belong to the word. Each Han and Hiragana character is a word.
There are no stop words. Terms of more than 255 characters are split.

`bigrams` is for languages without spaces between words. Its terms are overlapping pairs of characters in the scripts of
these languages, and whole words in other scripts.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from tlm_core.errors import InvalidRecipe

if TYPE_CHECKING:
    from tantivy import TextAnalyzer

Analysis = Literal["standard", "bigrams"]

LONGEST_TERM = 255

_WITHOUT_BLANKS = frozenset({"zh", "yue", "ja", "ko", "th", "lo", "km", "my", "bo"})
_SCRIPTS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029"
    "\u3040-\u30fa\u30fc-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_RUN = re.compile(rf"([{_SCRIPTS}]+)|[^\W_{_SCRIPTS}]+")

# Most English texts contain only these characters. For such texts, a regular expression gives the same words several
# times faster than the Unicode tables. Characters with special rules in the annex are excluded.
_LETTER = "A-Za-zÀ-ÖØ-öø-įıĲ-ſ"
_PLAIN = re.compile(rf"[\x00-\x7f{_LETTER}\u00a0°±×÷§–—‘’“”…•]*")
_PLAIN_WORD = re.compile(
    rf"_*[{_LETTER}0-9][{_LETTER}0-9_]*"
    rf"(?:(?:(?<=[{_LETTER}])['’‘.:](?=[{_LETTER}])|(?<=[0-9])['’‘.,;](?=[0-9]))[{_LETTER}0-9_]+)*"
)


def check_query(query: str, language: str) -> None:
    """Raise InvalidRecipe for RAKE in a language other than English, because its stop words are English."""
    if query == "rake" and not language.lower().startswith("en"):
        raise InvalidRecipe(f"selection.query 'rake' supports English only, not '{language}'. Set it to 'text'.")


def analysis_of(language: str) -> Analysis:
    """Return the analysis for `language`, a BCP 47 tag such as `en` or `zh-Hant`."""
    return "bigrams" if re.split("[-_]", language.lower())[0] in _WITHOUT_BLANKS else "standard"


def terms(text: str, analysis: Analysis) -> list[str]:
    """Return the terms of `text` in order, with repetitions."""
    words = list(_bigrams(text)) if analysis == "bigrams" else _standard(text)
    if words and max(map(len, words)) > LONGEST_TERM:
        return [word[start : start + LONGEST_TERM] for word in words for start in range(0, len(word), LONGEST_TERM)]
    return words


def _standard(text: str) -> list[str]:
    if _PLAIN.fullmatch(text):
        return _PLAIN_WORD.findall(text.lower())
    # Lucene maps each character to one lowercase character, but the full lowercase form of this letter has two.
    return _annex29().analyze(text.replace("İ", "i"))


def _bigrams(text: str) -> Iterator[str]:
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).lower()):
        run = match.group()
        if match.group(1) is None or len(run) == 1:
            yield run
        else:
            yield from (run[start : start + 2] for start in range(len(run) - 1))


@functools.cache
def _annex29() -> TextAnalyzer:
    """Return an analyzer for the word rules of Unicode Annex 29 (WB4 to WB13, WB999), as one pattern."""
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    extend = r"[\p{wb=Extend}\p{wb=Format}\p{wb=ZWJ}]*"

    def any_of(*breaks: str, other: str = "") -> str:
        """Return a pattern for a character with a word-break property in `breaks`, or for one of `other`."""
        return "[" + "".join(rf"\p{{wb={name}}}" for name in breaks) + other + "]" + extend

    quote, double_quote, hebrew = any_of("Single_Quote"), any_of(other='"'), any_of("Hebrew_Letter")
    letter = f"(?:{hebrew}(?:(?:{double_quote}{hebrew})+|{quote})?|{any_of('ALetter')})"
    digit = any_of("Numeric", other=r"\x{FF10}-\x{FF19}")
    katakana = any_of("Katakana")
    joiner = f"(?:{any_of('ExtendNumLet')})"
    in_word = any_of("MidLetter", "MidNumLet", "Single_Quote")
    in_number = any_of("MidNum", "MidNumLet", "Single_Quote")
    letters = f"{letter}(?:(?:{joiner}*|{in_word}){letter})*"
    digits = f"{digit}(?:(?:{joiner}*|{in_number}){digit})*"
    core = f"(?:{katakana}(?:{joiner}*{katakana})*|(?:{digits}|{letters})+)"
    word = f"{joiner}*{core}(?:{joiner}+{core})*{joiner}*"
    # Lucene does not split the scripts that need a dictionary to detect words.
    unsegmented = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{New_Tai_Lue}\p{Tai_Le}\p{Tai_Tham}\p{Tai_Viet}\p{Ahom}"
    run = f"(?:[[{unsegmented}]&&[\\p{{L}}\\p{{M}}]]{extend})+"
    character = any_of(other=r"\p{Han}\p{Hiragana}")
    flag = f"(?:{any_of('Regional_Indicator')}){{2}}"
    picture = r"\p{Extended_Pictographic}[\p{wb=Extend}\p{wb=Format}]*"
    emoji = rf"{flag}|[0-9#*]\x{{FE0F}}?\x{{20E3}}|{picture}(?:\x{{200D}}{picture})*{extend}"
    tokenizer = Tokenizer.regex(f"{emoji}|{word}|{run}|{character}")
    return TextAnalyzerBuilder(tokenizer).filter(Filter.lowercase()).build()
