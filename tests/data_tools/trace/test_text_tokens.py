"""Texts as the corpus has them: characters of tokens, words, special tokens, spaces before the first word."""

import random
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_tools.trace.text_tokens import encode, word_edges
from olmo_train.errors import ConfigError
from olmo_train.tokenizer import END_OF_TEXT, Tokenizer

SENTENCES = ["the cat sees a dog", "a dog's house is wet", "naïve café 日本語 ไทย 😀👩‍🚀 ok", "x = 3.14 if y else 0x1F"]
ALPHABET = "ab é日本ไท😀👩\u200d🚀🏽\u0301_'.\n\t 1<|>"


def save(tokenizer, path):
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(path))
    return Tokenizer(path)


def byte_level(path, **options):
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    return save(tokenizer, path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer") / "plain.json")


@pytest.fixture(scope="module")
def composing(tmp_path_factory):
    """As GPT-NeoX: text is normalized, so that bytes of tokens are not those of the text."""
    path = tmp_path_factory.mktemp("tokenizer") / "nfc.json"
    tokenizer = byte_level(path)._tokenizer
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory):
    """As Llama 2: no bytes, a mark for each space, one before the text."""
    tokenizer = HFTokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return save(tokenizer, tmp_path_factory.mktemp("tokenizer") / "metaspace.json")


def texts(number, seed=0):
    rng = random.Random(seed)
    for _ in range(number):
        yield "".join(rng.choices(ALPHABET, k=rng.randint(0, 25)))


def test_tokens_of_bytes_have_the_characters_that_they_touch(plain):
    table = plain.id_bytes()
    for text in texts(2000):
        tokens = encode(plain, text)
        assert tokens.ids == plain.encode_batch([text])[0]
        assert "".join(tokens.texts) == tokens.text == text
        starts = np.cumsum([0, *(len(char.encode()) for char in text)])
        at = 0
        for i, a, b in zip(tokens.ids, tokens.char_starts, tokens.char_ends, strict=True):
            assert starts[a] <= at < starts[a + 1]
            at += len(table[i])
            assert starts[b - 1] < at <= starts[b]


def test_an_emoji_of_several_tokens_is_one_character_of_each(plain):
    tokens = encode(plain, "a🦉b")
    middle = range(1, len(tokens) - 1)
    assert len(middle) >= 2
    assert {(tokens.char_starts[t], tokens.char_ends[t]) for t in middle} == {(1, 2)}
    assert tokens.texts == ["a", "🦉", *[""] * (len(middle) - 1), "b"]
    assert np.flatnonzero(~tokens.is_edge).tolist() == list(middle)[1:]


@pytest.mark.parametrize("name", ["composing", "metaspace"])
def test_other_tokenizers_give_characters_that_cover_the_text_in_order(name, request):
    tokenizer = request.getfixturevalue(name)
    for text in texts(500, seed=1):
        tokens = encode(tokenizer, text)
        assert len(tokens.texts) == len(tokens.char_starts) == len(tokens) == len(tokens.is_edge) - 1
        if len(tokens):
            assert "".join(tokens.texts) == text
            assert tokens.char_starts == sorted(tokens.char_starts)
            assert tokens.char_ends == sorted(tokens.char_ends)
            assert (tokens.char_starts[0], tokens.char_ends[-1]) == (0, len(text))


def test_a_letter_and_its_accent_that_are_composed_are_both_characters_of_the_token(composing):
    tokens = encode(composing, "cafe\u0301 ok")
    assert composing.decode(tokens.ids) == "café ok"
    at = max(t for t in range(len(tokens)) if tokens.char_starts[t] < 5)
    assert tokens.char_ends[at] == 5
    assert tokens.text[tokens.char_starts[-1] : tokens.char_ends[-1]].strip() in "ok"


def test_a_special_token_that_is_spelt_out_stays_text(plain):
    tokens = encode(plain, f"the {END_OF_TEXT} cat")
    assert plain.eos_id not in tokens.ids
    assert plain.decode(tokens.ids) == f"the {END_OF_TEXT} cat"


def test_the_empty_text_has_no_tokens(plain):
    tokens = encode(plain, "")
    assert (len(tokens), tokens.texts, tokens.is_edge.tolist(), tokens.spaced) == (0, [], [True], None)


def test_half_a_surrogate_pair_is_refused(plain):
    with pytest.raises(ConfigError, match=r"text: character 2 is U\+D83D, half of a surrogate pair, which is no text; decode"):
        encode(plain, "ab\ud83d")


def test_a_text_that_does_not_begin_with_a_space_has_a_form_after_one(plain):
    tokens = encode(plain, "dog sees")
    assert tokens.spaced is not None
    assert tokens.spaced.ids == encode(plain, " dog sees").ids != tokens.ids
    assert encode(plain, " dog sees").spaced is None
    assert encode(plain, "\ndog").spaced is None


def words(text):
    edges = np.flatnonzero(word_edges(text)).tolist()
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("it's snake_case 3.14", ["it", "'", "s", " ", "snake_case", " ", "3", ".", "14"]),
        ("naïve Ünï", ["naïve", " ", "Ünï"]),
        ("e\u0301te\u0301!", ["e\u0301te\u0301", "!"]),
        ("日本語でok", ["日", "本", "語", "で", "ok"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("한국어 말", ["한국어", " ", "말"]),
        ("हिन्दी में", ["हिन्दी", " ", "में"]),
        ("a👩\u200d🚀b", ["a", "👩\u200d🚀", "b"]),
        ("👍🏽👍", ["👍🏽", "👍"]),
        ("❤\ufe0fx", ["❤\ufe0f", "x"]),
        ("\u0301a", ["\u0301", "a"]),
        ("  \n", [" ", " ", "\n"]),
    ],
)
def test_words_are_runs_of_letters_and_their_marks(text, expected):
    assert words(text) == expected


def test_edges_of_tokens_are_edges_of_words_between_characters(plain):
    for text in texts(500, seed=2):
        tokens, edges = encode(plain, text), word_edges(text)
        for t in range(1, len(tokens)):
            is_between = tokens.char_ends[t - 1] == tokens.char_starts[t]
            assert tokens.is_edge[t] == (is_between and edges[tokens.char_starts[t]])
        assert tokens.is_edge[0]
        assert tokens.is_edge[-1]
