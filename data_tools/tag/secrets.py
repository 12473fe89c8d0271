"""`secrets`: private keys, and keys of well-known services, which have a shape of their own; above all in code."""

import re
from collections.abc import Sequence

from data_tools.documents import Line
from data_tools.tag.tagger import Scores
from data_tools.tag.units import Spans, n_chars, search

REACH = 2**15
"""Characters of the longest match, and a few."""
_KEY = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
# Kind, words without which there is none, and the expression. Each begins with a word, which is looked for fast, and only then
# with what must not stand before it. Every repetition is bounded, and none can be read in two ways.
_KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("private_key", ("PRIVATE KEY",), rf"-----BEGIN {_KEY}(?:[^-]|-(?!-)){{64,16384}}-----END {_KEY}"),
    ("aws_key", ("AKIA", "ASIA"), r"A(?<![A-Za-z0-9].)(?:KIA|SIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    ("github_token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh(?<![A-Za-z0-9]..)[pousr]_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    ("github_token", ("github_pat_",), r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}(?![A-Za-z0-9])"),
    ("gitlab_token", ("glpat-",), r"glpat-(?<![A-Za-z0-9]......)[A-Za-z0-9_-]{20}(?![A-Za-z0-9_-])"),
    ("google_key", ("AIza",), r"AIza(?<![A-Za-z0-9]....)[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("slack_token", ("xox",), r"xox(?<![A-Za-z0-9]...)[abeoprs]-[0-9]{1,16}-[A-Za-z0-9-]{10,200}"),
    ("slack_webhook", ("hooks.slack.com",), r"hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,32}"),
    ("stripe_key", ("sk_live_", "rk_live_"), r"[rs](?<![A-Za-z0-9].)k_live_[A-Za-z0-9]{20,120}"),
    ("openai_key", ("T3BlbkFJ",), r"sk-(?<![A-Za-z0-9]...)[A-Za-z0-9_-]{10,120}?T3BlbkFJ[A-Za-z0-9_-]{20,120}"),
    ("anthropic_key", ("sk-ant-",), r"sk-ant-(?<![A-Za-z0-9].......)[a-z0-9]{1,10}-[A-Za-z0-9_-]{80,120}"),
    ("huggingface_token", ("hf_",), r"hf_(?<![A-Za-z0-9]...)[A-Za-z]{34}(?![A-Za-z0-9])"),
    ("npm_token", ("npm_",), r"npm_(?<![A-Za-z0-9]....)[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    ("pypi_token", ("pypi-AgEIcHlwaS5vcmc",), r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,250}"),
    ("jwt", ("eyJ",), r"eyJ(?<![A-Za-z0-9]...)[A-Za-z0-9_-]{10,1000}\.eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{20,1000}"),
)


class SecretsTagger:
    """It has no settings."""

    name = "secrets"
    types: Sequence[str] = (*dict.fromkeys(kind for kind, _, _ in _KINDS), "doc_count")

    def __init__(self) -> None:
        self._kinds = [(kind, words, re.compile(pattern)) for kind, words, pattern in _KINDS]

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """Spans of each kind, and how many there are in the document."""
        return [self._tag(line) for line in lines]

    def _tag(self, line: Line) -> Scores:
        found: dict[str, Spans] = {}
        for kind, words, pattern in self._kinds:
            if line.is_long or any(word in line.text for word in words):
                for match, window in search(line, pattern, REACH):
                    found.setdefault(kind, Spans()).add(window.offset + match.start(), window.offset + match.end())
        for spans in found.values():
            spans.spans.sort()
        count: list[float] = [0, n_chars(line), sum(spans.count for spans in found.values())]
        return {**{kind: spans.spans for kind, spans in found.items()}, "doc_count": [count]}
