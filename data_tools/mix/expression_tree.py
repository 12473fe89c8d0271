"""An expression's text to a tree of the parts that are allowed: every node is looked at, and what is not known is refused."""

import ast

from olmo_train.conversion import nearest

SPAN_FUNCTIONS = ("score", "count", "total", "max_score", "min_score", "covered")
"""Of an attribute."""
FUNCTIONS = (
    *SPAN_FUNCTIONS, "attr", "metadata", "length", "id", "source", "abs", "min", "max", "lower", "starts_with", "ends_with",
)  # fmt: skip
"""All there are."""
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod)
LONGEST = 10_000
"""Characters of an expression."""
DEEPEST = 100
"""Brackets within brackets."""


class ExpressionError(ValueError):
    """An expression that is not of the language; the message says which part, and what is allowed."""


_NUMBER, _STRING, _TRUTH, _ANY = "a number", "a string", "a truth value", "any"
Built = tuple[ast.expr, str]
"""Tree and kind."""


class Builder:
    """Makes a new tree of the parts that are allowed; whatever it does not know is refused."""

    def __init__(self, slots: dict[str, int]) -> None:
        self.slots, self._is_fixed = slots, bool(slots)
        self.terms: dict[str, ast.expr] = {}

    def whole(self, text: str) -> ast.expr:
        """Of an expression's text."""
        if len(text) > LONGEST:
            raise ExpressionError(f"is longer than {LONGEST:,} characters; make several rules of it")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            told = error.msg if isinstance(error, SyntaxError) else str(error)
            raise ExpressionError(f"is no expression: {told}") from None
        built, kind = self._build(tree.body, 0)
        if kind == _STRING:
            raise ExpressionError("is a string, and so neither true nor false; compare it with something")
        return built

    def _build(self, node: ast.expr, depth: int) -> Built:
        if depth > DEEPEST:
            raise ExpressionError(f"is nested more than {DEEPEST} deep; make several rules of it")
        match node:
            case ast.BoolOp(op, values):
                built = [self._build(value, depth + 1) for value in values]
                self._refuse_strings(node, built)
                return ast.BoolOp(op, [tree for tree, _ in built]), _TRUTH
            case ast.UnaryOp(ast.Not(), operand):
                built = [self._build(operand, depth + 1)]
                self._refuse_strings(node, built)
                return ast.UnaryOp(ast.Not(), built[0][0]), _TRUTH
            case ast.UnaryOp(ast.USub(), operand):
                return ast.UnaryOp(ast.USub(), self._number(operand, depth)), _NUMBER
            case ast.BinOp(left, op, right) if isinstance(op, _OPERATORS):
                return ast.BinOp(self._number(left, depth), op, self._number(right, depth)), _NUMBER
            case ast.Compare():
                return self._compare(node, depth), _TRUTH
            case ast.Constant(value) if isinstance(value, bool):
                return ast.Constant(value), _TRUTH
            case ast.Constant(value) if isinstance(value, int | float):
                return ast.Constant(value), _NUMBER
            case ast.Constant(value) if isinstance(value, str):
                return ast.Constant(value), _STRING
            case ast.Name():
                return self._term(node, _score(self._spans(self._attribute(node)))), _NUMBER
            case ast.Call(ast.Name(name), arguments, []):
                return self._call(node, name, arguments, depth)
        raise ExpressionError(
            f"{_told(node)} is not allowed; there are attributes, numbers, strings, comparisons, in, and, or, not, + - * / %, "
            f"and the functions {', '.join(FUNCTIONS)}"
        )

    def _refuse_strings(self, node: ast.expr, built: list[Built]) -> None:
        if any(kind == _STRING for _, kind in built):
            raise ExpressionError(f"{_told(node)}: a string is neither true nor false; compare it with something")

    def _number(self, node: ast.expr, depth: int) -> ast.expr:
        tree, kind = self._build(node, depth + 1)
        if kind not in (_NUMBER, _ANY):
            raise ExpressionError(f"{_told(node)} is {kind}, where a number is needed")
        return tree if kind == _NUMBER else _call("_number", tree)

    def _string(self, node: ast.expr, depth: int) -> ast.expr:
        tree, kind = self._build(node, depth + 1)
        if kind not in (_STRING, _ANY):
            raise ExpressionError(f"{_told(node)} is {kind}, where a string is needed")
        return tree if kind == _STRING else _call("_string", tree)

    def _compare(self, node: ast.Compare, depth: int) -> ast.expr:
        left, kind = self._build(node.left, depth + 1)
        trees = []
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                if len(node.ops) > 1:
                    raise ExpressionError(f"{_told(node)}: `in` stands alone; join comparisons by `and`")
                tree, other = self._members(right, depth)
            elif isinstance(op, _COMPARISONS):
                tree, other = self._build(right, depth + 1)
            else:
                raise ExpressionError(f"{_told(node)}: `is` is not allowed; write == or !=")
            if kind != other and _ANY not in (kind, other):
                raise ExpressionError(f"{_told(node)} compares {kind} with {other}, which never are the same")
            trees.append(tree)
            kind = other
        return ast.Compare(left, node.ops, trees)

    def _members(self, node: ast.expr, depth: int) -> Built:
        """What stands right of `in`: constants of one kind, or a string that may hold another."""
        if not isinstance(node, ast.List | ast.Tuple):
            return self._string(node, depth), _STRING
        values = [each.value for each in node.elts if isinstance(each, ast.Constant)]
        kinds = {_STRING if isinstance(v, str) else _NUMBER for v in values if isinstance(v, str | int | float)}
        if len(values) != len(node.elts) or len(kinds) != 1:
            raise ExpressionError(f"{_told(node)}: a list holds numbers, or strings, and at least one")
        return ast.Tuple([ast.Constant(value) for value in values], ast.Load()), kinds.pop()

    # ---- functions -------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call, name: str, arguments: list[ast.expr], depth: int) -> Built:
        n = len(arguments)
        match name:
            case "attr":
                return self._term(node, _score(self._spans(self._attribute(node)))), _NUMBER
            case "score" | "count" | "total" | "max_score" | "min_score" if n == 1:
                spans = self._spans(self._attribute(arguments[0]))
                return self._term(node, _score(spans) if name == "score" else _call(f"_{name}", spans)), _NUMBER
            case "covered" if n in (1, 2):
                spans = self._spans(self._attribute(arguments[0]))
                return self._term(node, _ask(name, spans, *[self._number(a, depth) for a in arguments[1:]])), _NUMBER
            case "metadata" if n == 2 and isinstance(arguments[1], ast.Constant | ast.UnaryOp):
                words = [self._string(arguments[0], depth), self._build(arguments[1], depth)[0]]
                return self._term(node, _ask(name, *words)), _ANY
            case "length" if n == 0:
                return self._term(node, _ask(name)), _NUMBER
            case "id" | "source" if n == 0:
                return self._term(node, ast.Attribute(ast.Attribute(_load("d"), "line", ast.Load()), name, ast.Load())), _STRING
            case "abs" if n == 1:
                return _call("_abs", self._number(arguments[0], depth)), _NUMBER
            case "min" | "max" if n >= 2:
                return _call(f"_{name}", *[self._number(a, depth) for a in arguments]), _NUMBER
            case "lower" if n == 1:
                return _call("_lower", self._string(arguments[0], depth)), _STRING
            case "starts_with" | "ends_with" if n == 2:
                return _call(f"_{name}", *[self._string(a, depth) for a in arguments]), _TRUTH
        raise ExpressionError(_wrong_call(node, name))

    def _attribute(self, node: ast.expr) -> str:
        """The name that an argument gives: word__count, or attr("a name with - in it")."""
        match node:
            case ast.Name(name) if "__" in name:
                return name
            case ast.Name(name):
                hint = nearest(name, list(FUNCTIONS))
                raise ExpressionError(
                    f'{name} is no attribute{hint}: their names have __ in them; of another write attr("{name}")'
                )
            case ast.Call(ast.Name("attr"), [ast.Constant(str(name))], []):
                return name
        raise ExpressionError(f'{_told(node)} is not the name of an attribute; write it out, or attr("name")')

    def _spans(self, name: str) -> ast.expr:
        """`s[slot]`."""
        slot = self.slots[name] if self._is_fixed else self.slots.setdefault(name, len(self.slots))
        return ast.Subscript(_load("s"), ast.Constant(slot), ast.Load())

    def _term(self, node: ast.expr, tree: ast.expr) -> ast.expr:
        self.terms[ast.unparse(node)] = tree
        return tree


_USES = {
    "attr": 'attr("name")', "covered": "covered(attribute) or covered(attribute, min_score)",
    "metadata": 'metadata("dotted.name", default) with constants', "length": "length()", "id": "id()", "source": "source()",
    "abs": "abs(x)", "min": "min(x, y, ...)", "max": "max(x, y, ...)", "lower": "lower(string)",
    "starts_with": "starts_with(string, string)", "ends_with": "ends_with(string, string)",
}  # fmt: skip


def _wrong_call(node: ast.Call, name: str) -> str:
    if name not in FUNCTIONS:
        return f"{_told(node)}: there is no function {name}{nearest(name, list(FUNCTIONS))}; there are {', '.join(FUNCTIONS)}"
    return f"{_told(node)}: write {_USES.get(name, f'{name}(attribute)')}"


def _told(node: ast.expr) -> str:
    text = ast.unparse(node)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def _load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(_load(name), list(arguments), [])


def _ask(method: str, *arguments: ast.expr) -> ast.expr:
    """`d.method(...)`."""
    return ast.Call(ast.Attribute(_load("d"), method, ast.Load()), list(arguments), [])


def _score(spans: ast.expr) -> ast.expr:
    """`s[i][0][2] if s[i] else 0.0`."""
    first = ast.Subscript(ast.Subscript(spans, ast.Constant(0), ast.Load()), ast.Constant(2), ast.Load())
    return ast.IfExp(spans, first, ast.Constant(0.0))
