"""Numbers and strings as people read them: in the terminal and in the report."""

import unicodedata

NONE = "\N{EN DASH}"
"""What stands where there is no value."""
_PICTURES = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}", " ": "\N{MIDDLE DOT}"}
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories that show nothing, or change how what follows is shown (terminal escapes, right-to-left marks)."""


def amount(value: float) -> str:
    """`1.28B`, `4.19M`, `40.9K`, `4,096`: three digits and a unit."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= (unit * 0.9995 if name != "K" else unit):
            scaled = value / (1e3 if name == "K" else unit)
            return f"{scaled:.{max(0, 2 - len(str(int(abs(scaled)))) + 1)}f}{name}"
    return f"{value:,.0f}" if value == int(value) else number(value)


def exact(value: int | None) -> str:
    """`4,194,304`."""
    return NONE if value is None else f"{value:,}"


def number(value: float | None, digits: int = 4) -> str:
    """A measured number with `digits` significant digits: `0.1235`, `12.35`, `1.2e-05`."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{max(1, digits - 2)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{max(0, digits - len(str(int(abs(value)))))}f}" if abs(value) >= 1 else f"{value:#.{digits}g}"


def percent(value: float | None) -> str:
    """A fraction as `12.3%`."""
    return NONE if value is None else f"{100 * value:.{1 if value < 0.9995 else 0}f}%"


def size(n_bytes: int | None) -> str:
    """`33.2 MiB`."""
    if n_bytes is None:
        return NONE
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:,.1f} {name}"
    return f"{n_bytes} B"


def plain(text: object) -> str:
    """A string that cannot steer a terminal or the direction of a line: what is invisible is spelt out, `\\x1b`."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(_spelt(char) if char not in " \n\t" and unicodedata.category(char) in _HIDDEN else char for char in words)


def one_line(text: object) -> str:
    """`plain`, with line ends and tabs spelt out too."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_token(text: str) -> str:
    """A token whose blanks can be seen: `\N{MIDDLE DOT}the`, `\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}`."""
    shown = "".join(_PICTURES.get(char, char) for char in text)
    return plain(shown) or NONE


def _spelt(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
