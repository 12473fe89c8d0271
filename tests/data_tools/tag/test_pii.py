"""Addresses, numbers and keys: against Dolma's expressions, in texts of any length, and in hostile ones."""

import random
import re

import pytest

from data_tools.documents import Line
from data_tools.tag.model_config import PiiConfig
from data_tools.tag.pii import PiiTagger
from data_tools.tag.secrets import SecretsTagger
from data_tools.tag.tagger import Scores
from data_tools.tag.units import MOST_SPANS
from tests.data_tools.tag.texts import in_pieces, line

# Source: allenai/dolma python/dolma/taggers/pii.py
EMAIL = re.compile(r"[.\s@,?!;:)(]*([^\s@]+@[^\s@,?!;:)(]+?)[.\s@,?!;:)(]?[\s\n\r]")
PHONE = re.compile(r"\s+(\(?(\d{3})\)?[-\. ]*(\d{3})[-. ]?(\d{4}))")
IP = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)")


def tag(text: str | Line, window: int = 0, wide: bool = False) -> Scores:
    return PiiTagger(PiiConfig(window, wide)).tag([line(text) if isinstance(text, str) else text])[0]


def dolmas(text: str) -> list[list[tuple[int, int]]]:
    """What Dolma finds, but for local parts that are all punctuation; the end of a text counts as white space."""
    emails = []
    for match in EMAIL.finditer(text + " "):
        local, domain = match[1].split("@", 1)
        if "." in domain and local.strip(".,?!;:)("):
            emails.append(match.span(1))
    return [emails, [match.span(1) for match in PHONE.finditer(text)], [match.span() for match in IP.finditer(text)]]


def test_spans_are_those_of_dolmas_expressions() -> None:
    random_ = random.Random(0)
    found = 0
    for _ in range(6000):
        numbers = ["555", "123", "4567", " ", "\n", "-", ".", "(", ")", "25", "6", "a"]
        parts = random_.choice([list("ab@. ,)\n"), list("ab@.(: \n"), numbers, numbers[5:]])
        text = "".join(random_.choices(parts, k=random_.randint(0, 40)))
        scores = tag(text)
        ours = [[(int(a), int(b)) for a, b, _ in scores.get(kind, [])] for kind in PiiTagger.types[:3]]
        assert ours == dolmas(text), repr(text)
        found += sum(map(len, ours))
    assert found > 300


def test_a_document_has_spans_count_and_fraction() -> None:
    text = "Mail jane.doe@example.org, or call (555) 123-4567 from 10.0.0.1!"
    assert tag(text) == {
        "EMAIL_ADDRESS": [[5, 25, 1.0]],
        "PHONE_NUMBER": [[35, 49, 1.0]],
        "IP_ADDRESS": [[55, 63, 1.0]],
        "doc_count": [[0, 64, 3]],
        "doc_frac": [[0, 64, round(42 / 64, 5)]],
    }
    assert tag("") == {"doc_count": [[0, 0, 0]], "doc_frac": [[0, 0, 0.0]]}
    assert tag("Mail jane.doe@example.org, ok", wide=True)["EMAIL_ADDRESS"] == [[4, 27, 1.0]]
    assert tag("at   555 123 4567", wide=True)["PHONE_NUMBER"] == [[2, 17, 1.0]]


@pytest.mark.parametrize("context", ["isbn {}", "{} # no", "doi: {}"])
def test_a_window_excuses_numbers_of_books_and_papers(context: str) -> None:
    text = context.format(" 555 123 4567 and 10.0.0.1 ")
    assert {"PHONE_NUMBER", "IP_ADDRESS"} <= tag(text).keys()
    assert not {"PHONE_NUMBER", "IP_ADDRESS"} & tag(text, window=100).keys()
    far = text.replace("isbn", "isbn" + "x" * 200).replace("#", "y" * 200 + "#").replace("doi", "doi" + "x" * 200)
    assert {"PHONE_NUMBER", "IP_ADDRESS"} <= tag(far, window=100).keys()


def planted(random_: random.Random) -> str:
    words = ["jane@example.org", "555-123-4567", "10.1.2.3", "é", "isbn", "a" * 300 + "@b.de", "naïve", "\n", "#", "x" * 90]
    return " ".join(random_.choices(words, k=400))


def test_a_long_document_gets_the_spans_of_the_same_text_in_one_piece() -> None:
    random_ = random.Random(1)
    for window in (0, 100):
        text = planted(random_)
        assert tag(in_pieces(text), window) == tag(text, window)
        assert len(tag(text, window)["EMAIL_ADDRESS"]) > 20


def test_so_many_addresses_that_memory_would_grow_become_one_span() -> None:
    scores = tag("a@b.c " * (MOST_SPANS + 500))
    assert len(scores["EMAIL_ADDRESS"]) == MOST_SPANS
    assert scores["EMAIL_ADDRESS"][-2:] == [
        [6 * MOST_SPANS - 12, 6 * MOST_SPANS - 7, 1.0],
        [6 * MOST_SPANS - 6, 6 * (MOST_SPANS + 500) - 1, 1.0],
    ]
    assert scores["doc_count"][0][2] == MOST_SPANS + 500


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, "@" * 10**5, "a@" * 10**5, " " * 10**6 + "555", "1.2.3." * 10**5, "-----BEGIN RSA PRIVATE KEY-----\n" * 10**4],
)
def test_hostile_texts_take_no_longer_than_others(text: str) -> None:
    """Dolma's own expression takes quadratic time for the first: hours instead of this test's blink."""
    assert "EMAIL_ADDRESS" not in tag(text)
    assert SecretsTagger().tag([line(text)])[0]["doc_count"][0][2] == 0


# ---- secrets ----------------------------------------------------------------------------------------------------------------

KEYS = {
    "private_key": "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n" + "MIIEow+/IBAAKCAQEA\n" * 20 + "-----END RSA PRIVATE KEY-----",
    "aws_key": "AKIA" + "ABCDEFGH234567QZ",
    "github_token": "ghp_" + "a1B2" * 9,
    "gitlab_token": "glpat-" + "a1B2_" * 4,
    "google_key": "AIza" + "Sy_-1" * 7,
    "slack_token": "xoxb-123456789012-" + "abcDEF123" * 2,
    "slack_webhook": "hooks.slack.com/services/T0ABCDEF1/B0ABCDEF1/" + "a1B2c3D4" * 3,
    "stripe_key": "sk_live_" + "a1B2c3" * 4,
    "openai_key": "sk-" + "a1B2c3D4e5" * 2 + "T3BlbkFJ" + "a1B2c3D4e5" * 2,
    "anthropic_key": "sk-ant-api03-" + "a1B2c3D4e5" * 9,
    "huggingface_token": "hf_" + "abCDefGHij" * 3 + "klMN",
    "npm_token": "npm_" + "a1B2" * 9,
    "pypi_token": "pypi-AgEIcHlwaS5vcmc" + "a1B2c3D4e5" * 6,
    "jwt": "eyJhbGciOiJIUzI1" + ".eyJzdWIiOiIxMjM0" + ".SflKxwRJSMeKKF2QT4fwpMeJf36",
}  # fmt: skip


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_found_where_it_stands(kind: str) -> None:
    text = f"token = '{KEYS[kind]}'  # é\n"
    scores = SecretsTagger().tag([line(text)])[0]
    assert scores == {kind: [[9, 9 + len(KEYS[kind]), 1.0]], "doc_count": [[0, len(text), 1]]}
    if kind not in ("private_key", "slack_webhook", "pypi_token"):
        assert SecretsTagger().tag([line(text.replace("'", "X"))])[0]["doc_count"][0][2] == 0


def test_keys_in_a_long_document_are_found_across_its_pieces() -> None:
    random_ = random.Random(2)
    text = "\n".join(random_.choice([*KEYS.values(), "word " * 30]) for _ in range(300))
    whole, pieces = (SecretsTagger().tag([made(text)])[0] for made in (line, in_pieces))
    assert whole == pieces
    assert set(SecretsTagger.types) == set(KEYS) | {"doc_count"} == set(whole)
