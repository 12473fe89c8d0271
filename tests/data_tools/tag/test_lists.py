"""Lists of addresses and of words: every usual form of a line, and texts of any length."""

import gzip
import random
from pathlib import Path

import pytest

from data_tools.tag.model_config import ListConfig
from data_tools.tag.tagger import Scores
from data_tools.tag.urls import UrlList, UrlsTagger
from data_tools.tag.words import WordsTagger
from olmo_train.errors import ConfigError
from tests.data_tools.tag.texts import in_pieces, line

BLOCKED = """\
! Title: an Adblock list
[Adblock Plus 2.0]
# a comment
127.0.0.1 localhost
0.0.0.0 hosts.example second.example # both
::1 six.example
plain.example
*.star.example
||adblock.example^
||page.example^$document
||picture.example^$image
||path.example/bad^
@@||good.adblock.example^
example.net##.banner
http://Address.example/Shop/Casino
www.wikipedia.example
1.2.3.4
"""


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "blocked.txt.gz"
    path.write_bytes(gzip.compress(BLOCKED.encode()))
    return path


@pytest.mark.parametrize(
    ("url", "is_blocked"),
    [
        ("http://hosts.example/", True),
        ("https://deep.below.second.example/x?y", True),
        ("https://six.example", True),
        ("https://PLAIN.example:8080/", True),
        ("https://notplain.example/", False),
        ("https://example/", False),
        ("https://a.star.example/", True),
        ("https://www.adblock.example/a", True),
        ("https://good.adblock.example/a", False),
        ("https://page.example/", True),
        ("https://picture.example/", False),
        ("https://path.example/bad", True),
        ("https://path.example/bad/worse?x=1", True),
        ("https://path.example/bad?x=1", True),
        ("https://path.example/badly", False),
        ("https://path.example/", False),
        ("https://example.net/", False),
        ("http://address.example/shop/casino/", True),
        ("https://address.example/shop", False),
        ("https://www.wikipedia.example/", True),
        ("https://ikipedia.example/", False),
        ("http://1.2.3.4/x", True),
        ("http://0.0.0.0/", False),
        ("http://[bad", False),
    ],
)
def test_a_list_blocks_domains_with_those_below_and_addresses_with_what_follows(
    blocked: Path, url: str, is_blocked: bool
) -> None:
    assert UrlList(blocked).has(url) == is_blocked


def test_rules_about_parts_of_pages_are_counted_not_used(blocked: Path) -> None:
    assert UrlList(blocked).ignored == 3  # localhost, a picture, a banner


def test_the_address_is_that_of_the_metadata_or_the_id(blocked: Path) -> None:
    tagger = UrlsTagger([ListConfig("bad", str(blocked)), ListConfig("again", str(blocked))])
    assert tagger.types == ("bad", "again")
    lines = [
        line("text", metadata={"url": "http://plain.example"}),
        line("other", url="http://good.example"),
        line("none"),
        in_pieces("long " * 100, metadata={"WARC-Target-URI": "http://plain.example"}),
    ]
    whole, long = [[0, 4, 1.0]], [[0, 500, 1.0]]
    assert tagger.tag(lines) == [{"bad": whole, "again": whole}, {}, {}, {"bad": long, "again": long}]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"# nothing\n\n", "blocks nothing: none of its lines is a domain, an address, a line of a hosts file or `||domain^`"),
        (b"a.example\n\xff\n", "line 2 is not UTF-8: invalid start byte; convert the file"),
    ],
)
def test_a_list_without_entries_or_in_another_encoding_is_refused(tmp_path: Path, contents: bytes, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(contents)
    with pytest.raises(ConfigError) as error:
        UrlList(path)
    assert str(error.value) in (f"{path} {message}", f"{path}: {message}")


def test_a_list_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt.gz"
    path.write_bytes(gzip.compress(b"a.example\n" * 5000)[:-20])
    with pytest.raises(ConfigError, match=r"list\.txt\.gz: damaged after line \d+: .*; get it again"):
        UrlList(path)


# ---- words ------------------------------------------------------------------------------------------------------------------

WORDS = "# bad words\nhell\nStraße\nhot dog\nhot dog stand\nc++\n博彩\nDon't\n"


@pytest.fixture
def words(tmp_path: Path) -> WordsTagger:
    (tmp_path / "words.txt").write_text(WORDS)
    return WordsTagger([ListConfig("bad", str(tmp_path / "words.txt"))])


def found(tagger: WordsTagger, text: str) -> list[str]:
    return [text[int(start) : int(end)] for start, end, _ in tagger.tag([line(text)])[0].get("bad", [])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hell, HELL and hell!", ["Hell", "HELL", "hell"]),
        ("hello shell hell_ hell2", []),
        ("STRASSE straße strasse", ["STRASSE", "straße", "strasse"]),
        ("a Hot Dog, hot\ndog, hot-dogs, hotdog", ["Hot Dog", "hot\ndog"]),
        ("the hot dog  stand", ["hot dog  stand"]),
        ("hot" + " " * 9 + "dog", []),
        ("C++ and c++11 and cc++", ["C++", "c++"]),
        ("去博彩网", ["博彩"]),
        ("don't DON'T dont", ["don't", "DON'T"]),
        ("", []),
    ],
)  # fmt: skip
def test_words_are_found_as_words_whatever_their_case(words: WordsTagger, text: str, expected: list[str]) -> None:
    assert found(words, text) == expected


def test_counts_and_fractions_are_of_all_words(words: WordsTagger) -> None:
    assert words.types == ("bad", "bad_count", "bad_frac")
    text = "one hot dog in hell"
    assert words.tag([line(text)]) == [
        {"bad": [[4, 11, 1.0], [15, 19, 1.0]], "bad_count": [[0, 19, 2]], "bad_frac": [[0, 19, 0.4]]}
    ]
    assert words.tag([line("")]) == [{"bad_count": [[0, 0, 0]], "bad_frac": [[0, 0, 0.0]]}]


def test_a_long_document_has_the_words_of_the_same_text_in_one_piece(words: WordsTagger) -> None:
    random_ = random.Random(0)
    text = "".join(random_.choices(["hell", "hot", "dog", "stand", " ", " ", "-", "\n", "c++", "博彩", "x" * 60], k=2000))
    results: list[Scores] = [words.tag([made(text)])[0] for made in (line, in_pieces)]
    assert results[0] == results[1]
    assert len(results[0]["bad"]) > 50


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("# none\n", " has no word; give a file with a word or phrase on each line"),
        ("ok\n" + "x" * 1001, ": line 2 has 1001 characters; a word or phrase has at most 1000"),
    ],
)
def test_a_list_of_words_that_is_none_is_refused(tmp_path: Path, contents: str, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(contents)
    with pytest.raises(ConfigError) as error:
        WordsTagger([ListConfig("bad", str(path))])
    assert str(error.value) == f"{path}{message}"
