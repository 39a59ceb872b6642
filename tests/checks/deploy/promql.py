"""A parser of the part of PromQL that the alerts and the dashboard use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(r'\s*(\d[\d.e+]*[smhd]?|"[^"]*"|[A-Za-z_]\w*|=~|!=|==|<=|>=|[-+*/()\[\]{},<>=])')
_AGGREGATIONS = {"sum", "max", "min", "avg", "count"}
_FUNCTIONS = {"rate": 1, "deriv": 1, "increase": 1, "avg_over_time": 1, "histogram_quantile": 2}
_RANGED = {"rate", "deriv", "increase", "avg_over_time"}
_OPERATORS = {"+", "-", "*", "/", "<", ">", "==", "!=", "<=", ">=", "and", "or"}


@dataclass
class Query:
    """The metrics of an expression with the labels that it names. Raises ValueError for an invalid expression."""

    text: str
    metrics: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tokens = list(self._split())
        self._has_range = False
        if not self._expression() or self._has_range or self._tokens:
            raise ValueError(f"{self.text}: unexpected {self._tokens[:1] or 'end'}")

    def _split(self) -> Iterator[str]:
        place = 0
        while place < len(self.text.rstrip()):
            if not (match := _TOKEN.match(self.text, place)):
                raise ValueError(f"{self.text}: invalid at '{self.text[place:]}'")
            yield match[1]
            place = match.end()

    def _next(self, *expected: str) -> str:
        token = self._tokens.pop(0) if self._tokens else "the end"
        if expected and token not in expected:
            raise ValueError(f"{self.text}: '{token}' instead of {expected}")
        return token

    def _peek(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _expression(self) -> list[str]:
        names = self._operand()
        while self._peek() in _OPERATORS:
            self._next()
            names += self._operand()
        return names

    def _operand(self) -> list[str]:
        token = self._next()
        if token == "(":
            names = self._expression()
            self._next(")")
            return names
        if token[0].isdigit():
            return []
        if token in _AGGREGATIONS:
            return self._aggregation()
        if token in _FUNCTIONS:
            return self._call(token)
        return self._selector(token)

    def _aggregation(self) -> list[str]:
        by = self._list("by") if self._peek() == "by" else []
        names = self._call_arguments(1)
        for name in names:
            self.metrics[name].update(by)
        return names

    def _list(self, word: str) -> list[str]:
        self._next(word)
        self._next("(")
        labels = [self._next()]
        while self._next(",", ")") == ",":
            labels.append(self._next())
        return labels

    def _call(self, function: str) -> list[str]:
        names = self._call_arguments(_FUNCTIONS[function])
        if self._has_range is not (function in _RANGED):
            raise ValueError(f"{self.text}: {function} needs a range, or none")
        self._has_range = False
        return names

    def _call_arguments(self, count: int) -> list[str]:
        self._next("(")
        names = self._expression()
        for _ in range(count - 1):
            self._next(",")
            names += self._expression()
        self._next(")")
        return names

    def _selector(self, name: str) -> list[str]:
        if not name.isidentifier():
            raise ValueError(f"{self.text}: '{name}' instead of a metric")
        labels = self.metrics.setdefault(name, set())
        if self._peek() == "{":
            self._next("{")
            while True:
                labels.add(self._next())
                self._next("=", "!=", "=~")
                self._next()
                if self._next(",", "}") == "}":
                    break
        self._has_range = self._peek() == "["
        if self._has_range:
            self._next("[")
            if not re.fullmatch(r"\d+[smhd]", self._next()):
                raise ValueError(f"{self.text}: invalid range")
            self._next("]")
        return [name]
