"""The language of filters: what it allows gives what Python would, and nothing else gets in."""

import json
from typing import Any

import pytest

from data_tools.documents import Line
from data_tools.mix.expression import Rules, View, read_expression
from data_tools.mix.expression_tree import ExpressionError

SPANS = {
    "t__a": [(0, 4, 2.0), (2, 6, 0.5)],
    "t__b": [(0, 10, 0.0)],
    "t__none": [],
    "t-x__y": [(1, 2, 7.0)],
    "odd name": [(0, 1, 3.0)],
}
METADATA = {"lang": "EN", "n": 3, "url": "https://x.org/a", "deep": {"er": [1], "null": None}, "evil": "%99999999d"}


def line_of(text: str = "0123456789", metadata: Any = METADATA) -> Line:
    raw = json.dumps({"id": "doc-1", "text": text, "source": "web", "metadata": metadata}).encode()
    return Line("doc-1", "web", text, raw, "f", 1)


def evaluate(text: str, line: Line | None = None) -> bool:
    rules = Rules([(text, False)], {name: i for i, name in enumerate(SPANS)})
    return rules.first(tuple(SPANS.values()), View(line or line_of())) == 0


@pytest.mark.parametrize(
    "text",
    [
        "t__a == 2", "t__a", "not t__b", "not t__none", "t__none == 0", "score(t__a) == 2.0", "count(t__a) == 2",
        "count(t__none) == 0", "total(t__a) == 2.5", "max_score(t__a) == 2", "min_score(t__a) == 0.5", "max_score(t__none) == 0",
        "covered(t__a) == 0.6", "covered(t__a, 1) == 0.4", "covered(t__none) == 0", 'attr("t-x__y") == 7',
        'count(attr("t-x__y")) == 1', 'attr("odd name") == 3', 't__a > 1 and (t__b > 1 or attr("t-x__y") > 1)', "1 < t__a <= 2",
        "t__a * 3 - 1 == 5", "-t__a < 0", "t__a / 4 == 0.5", "t__a % 2 == 0", "length() == 10", 'id() == "doc-1"',
        'source() in ["web", "code"]', 'source() not in ("code",)', 't__a in [1, 2]', '"x.org" in metadata("url", "")',
        'metadata("lang", "") == "EN"', 'lower(metadata("lang", "")) == "en"', 'metadata("n", 0) > 2', 'metadata("no", 5) == 5',
        'metadata("deep.no", -1) == -1', 'metadata("deep.null", "d") == "d"', 'metadata("n.below", 1) == 1',
        'starts_with(metadata("url", ""), "https:")', 'ends_with(id(), "-1")', "abs(-3) == 3", "min(t__a, 1, 5) == 1",
        "max(t__a, 1) == 2", "True", "not False", "t__a != 1", "1_000 > t__a >= 2.0", "  t__a == 2\n",
    ],
)  # fmt: skip
def test_what_is_allowed_holds(text: str) -> None:
    assert evaluate(text)
    assert not evaluate(f"not ({text.strip()})")


NUMBERS = "is not allowed; there are attributes, numbers, strings, comparisons, in, and, or, not, + - * / %"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no expression: invalid syntax"),
        ("t__a <", "is no expression: invalid syntax"),
        ("t__a = 3", "is no expression: "),
        ("t__a.real > 1", f"`t__a.real` {NUMBERS}"),
        ("t__a[0] > 1", f"`t__a[0]` {NUMBERS}"),
        ("lambda: t__a", f"`lambda: t__a` {NUMBERS}"),
        ("[x for x in t__a]", "`[x for x in t__a]` is not allowed"),
        ("(t__a := 3) > 1", "is not allowed"),
        ("t__a if t__b else 1", "is not allowed"),
        ("t__a ** 9 > 1", "`t__a ** 9` is not allowed"),
        ("t__a // 2 > 1", "is not allowed"),
        ("~t__a > 1", "is not allowed"),
        ("None == t__a", "`None` is not allowed"),
        ("t__a == 1j", "`1j` is not allowed"),
        ("t__a == b'x'", "is not allowed"),
        ("f'{t__a}' == 'x'", "is not allowed"),
        ("{1: 2}", "is not allowed"),
        ("count(*t__a) > 1", "is not the name of an attribute"),
        ("count(t__a, x=1) > 1", "`count(t__a, x=1)` is not allowed"),
        ("__import__('os')", "there is no function __import__; there are score, count"),
        ("t__a.__class__()", "is not allowed"),
        ("(abs)(t__a)(3)", "is not allowed"),
        ("cuont(t__a) > 1", "`cuont(t__a)`: there is no function cuont (did you mean count?); there are score"),
        ("count() > 1", "`count()`: write count(attribute)"),
        ("covered(t__a, 1, 2) > 1", "write covered(attribute) or covered(attribute, min_score)"),
        ("length(t__a) > 1", "write length()"),
        ("metadata('x') == 1", 'write metadata("dotted.name", default) with constants'),
        ("metadata('x', t__a) == 1", "with constants"),
        ("metadata('x', None) == 1", "`None` is not allowed"),
        ("metadata(3, 1) == 1", "`3` is a number, where a string is needed"),
        ("attr(t__a) > 1", '`attr(t__a)` is not the name of an attribute; write it out, or attr("name")'),
        ("count(3) > 1", "`3` is not the name of an attribute"),
        ("lenght > 3", 'lenght is no attribute (did you mean length?): their names have __ in them; of another write attr("lenght")'),
        ("t__a == 'x'", "`t__a == 'x'` compares a number with a string, which never are the same"),
        ("t__a > (t__b > 1)", "compares a number with a truth value"),
        ("id() in [1, 2]", "compares a string with a number"),
        ("t__a in [1, 'x']", "`t__a in [1, 'x']`".replace("t__a in ", "") + ": a list holds numbers, or strings, and at least one"),
        ("t__a in []", "a list holds numbers, or strings, and at least one"),
        ("t__a in t__b", "`t__b` is a number, where a string is needed"),
        ("1 < t__a in [2]", "`in` stands alone; join comparisons by `and`"),
        ("t__a is 1", "`is` is not allowed; write == or !="),
        ("id()", "is a string, and so neither true nor false; compare it with something"),
        ("t__a > 1 and 'x'", "a string is neither true nor false"),
        ("not source()", "a string is neither true nor false"),
        ("id() + 1 > 2", "`id()` is a string, where a number is needed"),
        ("'%9d' % 3 == ''", "`'%9d'` is a string, where a number is needed"),
        ("lower(t__a) == 'x'", "`t__a` is a number, where a string is needed"),
        ("(" * 150 + "1" + ")" * 150, ""),
        ("not " * 150 + "t__a", "is nested more than 100 deep; make several rules of it"),
        ("t__a > 1 or " * 1000 + "t__a", "is longer than 10,000 characters; make several rules of it"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused(text: str, message: str) -> None:
    if not message:
        assert read_expression(text).attributes == ()  # brackets alone nest nothing
        return
    with pytest.raises(ExpressionError) as caught:
        read_expression(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('metadata("lang", 0) > 2', "'>' not supported"),
        ("1 / t__none > 2", "division"),
        ('metadata("evil", 0) * 9 > 1', "'%99999999d' is not a number"),
        ('metadata("evil", 0) % 9 > 1', "'%99999999d' is not a number"),
        ('"a" in metadata("n", "")', "3 is not a string"),
        ('lower(metadata("deep", "")) == "x"', "is not a string"),
    ],
)
def test_what_cannot_be_worked_out_says_which_rule_and_why(text: str, told: str) -> None:
    rules = Rules([("t__a > 5", False), (text, False)], {name: i for i, name in enumerate(SPANS)})
    spans, view = tuple(SPANS.values()), View(line_of())
    with pytest.raises((TypeError, ArithmeticError)):
        rules.first(spans, view)
    index, why = rules.failing(spans, view)
    assert index == 1
    assert told in why


def test_the_first_rule_that_hits_is_told_with_its_values() -> None:
    slots = {name: i for i, name in enumerate(SPANS)}
    text = 'count(t__a) < 9 and metadata("lang", "") == "EN" or 1 / t__none > 3'
    rules = Rules([("t__b", False), ("t__a > 1", True), (text, False), ("True", False)], slots)
    spans, view = tuple(SPANS.values()), View(line_of())
    assert rules.first(spans, view) == 2
    assert rules.values(2, spans, view) == {"count(t__a)": 2, "metadata('lang', '')": "EN", "t__none": 0.0}
    assert Rules([("t__b", True)], slots).first(spans, view) == 0
    assert Rules([], {}).first((), view) == -1


def test_names_are_told_in_order_and_as_written() -> None:
    found = read_expression('b__x > 1 and (count(a__x) > 1 or attr("c-d") == b__x)')
    assert found.attributes == ("b__x", "a__x", "c-d")
    assert found.terms == ("b__x", "count(a__x)", "attr('c-d')")


def test_metadata_that_are_none_give_defaults() -> None:
    for metadata in (None, "text", 5, [1]):
        assert evaluate('metadata("lang", "none") == "none"', line_of(metadata=metadata))
    assert evaluate("covered(t__none) == 0", line_of(text=""))
