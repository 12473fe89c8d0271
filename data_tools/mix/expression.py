"""The language of filters: attributes, numbers, comparisons and a few functions, as Python writes them; nothing else is let in.

gopher__word_count < 50 or count(pii__EMAIL_ADDRESS) > 5
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from data_tools.documents import Line
from data_tools.mix.expression_tree import Builder

Spans = Sequence[tuple[int, int, float]]


def size_of(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


class View:
    """What an expression may ask of a document, beside its attributes. Metadata are unpacked when they are asked for."""

    __slots__ = ("_length", "_metadata", "line", "n_bytes")

    def __init__(self, line: Line) -> None:
        self.line = line
        self._length: int | None = None
        self.n_bytes = 0 if line.is_long else size_of(line.text)
        """Of the text, as UTF-8."""
        if line.is_long:
            self._length = 0
            for piece in line.pieces():
                self._length += len(piece)
                self.n_bytes += size_of(piece)
        self._metadata: Any = None

    def length(self) -> int:
        """Characters of the text."""
        if self._length is None:
            self._length = len(self.line.text)
        return self._length

    def metadata(self, name: str, default: Any) -> Any:
        """Value at a dotted name; a name that is not there, or null, gives the default."""
        if self._metadata is None:
            try:
                self._metadata = _decode_metadata(self.line.raw).metadata or {}
            except msgspec.ValidationError:  # a number beyond float64
                self._metadata = self.line.values().get("metadata") or {}
        value = self._metadata
        for word in name.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return default if value is None else value

    def covered(self, spans: Spans, least: float | None = None) -> float:
        """Share of the characters that lie in spans whose score is not less than `least`, each counted once."""
        end = covered = 0
        for first, last, score in sorted(spans):
            if least is None or score >= least:
                covered += max(0, last - max(first, end))
                end = max(end, last)
        return covered / self.length() if covered else 0.0


class _Metadata(msgspec.Struct, gc=False):
    metadata: Any = None


_decode_metadata = msgspec.json.Decoder(_Metadata).decode


def _total(spans: Spans) -> float:
    return sum(span[2] for span in spans)


def _highest(spans: Spans) -> float:
    return max((span[2] for span in spans), default=0.0)


def _lowest(spans: Spans) -> float:
    return min((span[2] for span in spans), default=0.0)


def _checked_number(value: Any) -> Any:
    """What metadata hold may be anything: `%` and `*` of a string would format and repeat it."""
    if isinstance(value, int | float):
        return value
    raise TypeError(f"{value!r:.80} is not a number")


def _checked_string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{value!r:.80} is not a string")


_NAMES: dict[str, Any] = {
    "__builtins__": {}, "_number": _checked_number, "_string": _checked_string, "_count": len, "_total": _total,
    "_max_score": _highest, "_min_score": _lowest, "_abs": abs, "_min": min, "_max": max, "_lower": str.lower,
    "_starts_with": str.startswith, "_ends_with": str.endswith,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A text that was read: `attributes` are the names in it, as written, in order."""

    text: str
    attributes: tuple[str, ...]
    terms: tuple[str, ...]
    """Its smallest parts that have a value: what is told of a document that was dropped."""


def read_expression(text: str) -> Expression:
    """Read an expression without compiling it.

    Raises:
        ExpressionError: it is not of the language.
    """
    builder = Builder({})
    builder.whole(text)
    return Expression(text, tuple(builder.slots), tuple(builder.terms))


class Rules:
    """Expressions compiled into one function. `slots`: where each attribute's spans lie in what `first` is given."""

    def __init__(self, rules: Sequence[tuple[str, bool]], slots: dict[str, int]) -> None:
        """`rules`: (expression, whether it must hold). Attributes' names are as written."""
        trees = []
        self._each: list[Callable[[Any, View], Any]] = []
        self._terms: list[dict[str, Callable[[Any, View], Any]]] = []
        for text, must_hold in rules:
            builder = Builder(slots)
            tree = builder.whole(text)
            self._terms.append({term: _compile(each) for term, each in builder.terms.items()})
            trees.append(ast.UnaryOp(ast.Not(), tree) if must_hold else tree)
            self._each.append(_compile(trees[-1]))
        body: list[ast.stmt] = [ast.If(tree, [ast.Return(ast.Constant(i))], []) for i, tree in enumerate(trees)]
        self.first: Callable[[Any, View], int] = _compile_function([*body, ast.Return(ast.Constant(-1))])
        """(spans, view) -> the first rule that drops a document; -1: none does."""

    def values(self, index: int, spans: Any, view: View) -> dict[str, Any]:
        """The terms of a rule, with their values."""
        return {term: _value(function, spans, view) for term, function in self._terms[index].items()}

    def failing(self, spans: Any, view: View) -> tuple[int, str]:
        """Which rule cannot be worked out for a document, and why; asked after `first` has failed."""
        for index, function in enumerate(self._each):
            try:
                function(spans, view)
            except (TypeError, ArithmeticError) as error:
                return index, str(error)
        raise AssertionError


def _value(function: Callable[[Any, View], Any], spans: Any, view: View) -> Any:
    try:
        return function(spans, view)
    except (TypeError, ArithmeticError):
        return None  # of a term that `and` or `or` did not come to


def _compile(tree: ast.expr) -> Callable[[Any, View], Any]:
    return _compile_function([ast.Return(tree)])


def _compile_function(body: list[ast.stmt]) -> Callable[[Any, View], Any]:
    """A function of (s, d), made of trees of `Builder` alone: nothing of the user's text is in it but constants."""
    arguments = ast.arguments([], [ast.arg("s"), ast.arg("d")], None, [], [], None, [])
    function = ast.FunctionDef("first", arguments, body, [], None)
    function.type_params = []  # type: ignore[attr-defined]  # Python 3.12 wants it
    made: dict[str, Any] = {}
    module = ast.fix_missing_locations(ast.Module([function], []))
    exec(compile(module, "<filter>", "exec"), dict(_NAMES), made)
    found: Callable[[Any, View], Any] = made["first"]
    return found
