"""Pieces joined are the whole text, nothing is taken back, and stops cut where they begin."""

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from checkpoints.generate.streaming import TextStream
from olmo_train.tokenizer import END_OF_TEXT, Tokenizer
from tests.texts import TextCorpus

HOSTILE = "né 🙂👩‍👩‍👧 日本語 \u0301\ufffd\u00ad\x00\u2028 क्षि ﷽ \U0001d518\U0010ffff end"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level: every byte, some pieces of characters, and added tokens of any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("ð", "Ł"), ("ðŁ", "Ļ"), ("ã", "ģ"), ("Ġ", "e"), ("ï", "¿"), ("ï¿", "½")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = HFTokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("two words", "日本", "Ġé", "🙂 🙂")])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Not byte-level: its decoder joins bytes to characters afterwards."""
    vocab = {END_OF_TEXT: 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁cat": 257, "▁dog": 258, "s": 259}
    tokenizer = HFTokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    path = tmp_path_factory.mktemp("fallback") / "tokenizer.json"
    tokenizer.save(str(path))
    return Tokenizer(path)


def pieces(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stops)
    out = []
    for token in ids:
        out.append(stream.push(token))
        if stream.is_stopped:
            break
    out.append(stream.end())
    assert stream.text == "".join(out)
    return out


def sequences(tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """Random ids, and texts with ids taken out or put in."""
    rng, out = random.Random(0), []
    for _ in range(n):
        ids = tokenizer.encode(HOSTILE * 2) if rng.random() < 0.7 else [rng.randrange(tokenizer.vocab_size) for _ in range(40)]
        for _ in range(rng.randrange(6)):
            place = rng.randrange(len(ids))
            if rng.random() < 0.5:
                del ids[place]
            else:
                ids.insert(place, rng.randrange(tokenizer.vocab_size))
        out.append(ids)
    return out


def test_pieces_joined_are_the_whole_text(hostile: Tokenizer, byte_fallback: Tokenizer, corpus: TextCorpus) -> None:
    for tokenizer in (hostile, byte_fallback, Tokenizer(corpus.tokenizer)):
        for ids in sequences(tokenizer, 300):
            assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_every_character_comes_as_soon_as_it_is_whole(hostile: Tokenizer) -> None:
    stream = TextStream(hostile)
    ids, shown = hostile.encode(HOSTILE), ""
    for n, token in enumerate(ids, 1):
        shown += stream.push(token)
        whole = b"".join((hostile.id_bytes() or [])[i] for i in ids[:n])
        assert shown == whole.decode("utf-8", "ignore")
    assert shown == HOSTILE
    assert stream.end() == ""


def test_half_a_character_at_the_end_is_a_replacement(hostile: Tokenizer) -> None:
    ids = hostile.encode("a日")[:-1]
    assert pieces(hostile, ids)[-1] == "\ufffd"
    assert "".join(pieces(hostile, ids)) == "a\ufffd" == hostile.decode(ids)


STOPS = [
    ("e",),
    ("🙂",),
    ("日本", "語"),
    (" क्षि ", "nope"),
    ("\ufffd",),
    ("end", "n"),
    ("abab", "bac"),
    ("two words",),
    ("x" * 50,),
]


@pytest.mark.parametrize("stops", STOPS)
def test_a_text_ends_before_its_first_stop(hostile: Tokenizer, stops: tuple[str, ...]) -> None:
    """The reference looks at the whole text after every token."""
    for ids in [*sequences(hostile, 60), hostile.encode("xababababac two words abab")]:
        expected = hostile.decode(ids)
        decoded = TextStream(hostile)
        for token in ids:
            decoded.push(token)
            places = [place for stop in stops if (place := decoded.text.find(stop)) >= 0]
            if places:
                expected = decoded.text[: min(places)]
                break
        else:
            places = [place for stop in stops if (place := expected.find(stop)) >= 0]  # in what only the end completes
            expected = expected[: min(places)] if places else expected
        assert "".join(pieces(hostile, ids, stops)) == expected


def test_what_may_become_a_stop_is_held_back(hostile: Tokenizer) -> None:
    out = pieces(hostile, hostile.encode("abcabd"), ("abd",))
    assert out == ["", "", "abc", "", "", "", ""]
    assert pieces(hostile, hostile.encode("abab"), ("abd",))[-1] == "ab"


def test_a_tokenizer_that_is_not_byte_level_speaks_at_the_end(byte_fallback: Tokenizer) -> None:
    assert byte_fallback.id_bytes() is None
    ids = [257, *(byte + 1 for byte in "é".encode()), 258, 259]
    assert pieces(byte_fallback, ids) == ["", "", "", "", "", " caté dogs"]
    assert pieces(byte_fallback, ids, ("dog",)) == ["", "", "", " caté ", ""]


def test_an_id_without_a_token_is_silent(hostile: Tokenizer) -> None:
    assert pieces(hostile, [hostile.vocab_size + 5, *hostile.encode("a")]) == ["", "a", ""]


def test_bytes_of_ids_are_what_decoding_joins(hostile: Tokenizer, corpus: TextCorpus, tmp_path: Path) -> None:
    for tokenizer in (hostile, Tokenizer(corpus.tokenizer)):
        table = tokenizer.id_bytes()
        assert table is not None
        assert len(table) == tokenizer.vocab_size
        for ids in sequences(tokenizer, 50):
            assert b"".join(table[i] for i in ids).decode("utf-8", "replace") == tokenizer.decode(ids)
