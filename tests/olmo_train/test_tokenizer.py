"""Text to ids and back: nothing lost, no boundary smuggled in, bytes counted."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HFTokenizer

from olmo_train.data.shards import Corpus, ShardWriter, WriterOptions
from olmo_train.errors import ConfigError
from olmo_train.tokenizer import END_OF_TEXT, Tokenizer

TEXTS = [
    "",
    " ",
    "plain words, and more words",
    "naïve Straße, 日本語 и кириллица",
    "😀👩‍👩‍👧 flags 🇩🇪",
    "line\nline\r\n\ttab  two spaces   three\u00a0no-break",
    "\x00\x01\x7f control, \ufeff mark, \u2028 separator, \U0010ffff last",
    f"before {END_OF_TEXT} after <|pad|> <|user|>",
    "x" * 5000,
]


def build() -> HFTokenizer:
    """A byte-level BPE tokenizer as published ones are: a special token more, an added token that is not special, a template."""
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END_OF_TEXT, "<|pad|>"], show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("ü-token", special=False, normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, 0)])
    return tokenizer


def save(tokenizer: HFTokenizer, path: Path) -> Path:
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(build(), tmp_path / "tokenizer.json")


# ---- ids and text ----------------------------------------------------------------------------------------------------------


def test_texts_come_back_from_their_ids(path: Path) -> None:
    tokenizer = Tokenizer(path)
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(np.array(ids, np.uint16)) == text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_comes_back_in_nfc(path: Path) -> None:
    tokenizer, nfc = Tokenizer(path), normalizers.NFC()
    rng = np.random.default_rng(0)
    points = [p for p in rng.integers(0, 0x110000, 3000).tolist() if not 0xD800 <= p < 0xE000]
    texts = ["".join(map(chr, points[i : i + 30])) for i in range(0, len(points), 30)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == nfc.normalize_str(text)


def test_no_end_of_text_is_added(path: Path) -> None:
    tokenizer = Tokenizer(path)
    assert tokenizer.encode("") == []
    assert tokenizer.eos_id not in tokenizer.encode("words")
    assert build().encode("words").ids[-1] == tokenizer.eos_id  # the template would


def test_special_tokens_spelt_out_in_a_document_stay_text(path: Path) -> None:
    tokenizer = Tokenizer(path)
    special = {tokenizer.eos_id, *(i for name in ("<|pad|>", "<|user|>") for i in tokenizer.encode(name))}
    assert len(special) == 3
    for text in (END_OF_TEXT, f"{END_OF_TEXT}{END_OF_TEXT}", f"a {END_OF_TEXT} b", "<|pad|>", "say <|user|>hi"):
        (ids,) = tokenizer.encode_batch([text])
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text


def test_special_tokens_in_a_prompt_are_special_and_shown(path: Path) -> None:
    tokenizer = Tokenizer(path)
    assert tokenizer.encode(f"a{END_OF_TEXT}") == [*tokenizer.encode("a"), tokenizer.eos_id]
    assert tokenizer.decode([tokenizer.eos_id]) == END_OF_TEXT


def test_a_batch_is_its_texts_one_by_one(path: Path) -> None:
    tokenizer = Tokenizer(path)
    plain = [text for text in TEXTS if "<|" not in text]
    assert tokenizer.encode_batch(plain) == [tokenizer.encode(text) for text in plain]
    assert tokenizer.encode_batch([]) == []


def test_added_tokens_that_are_not_special_are_used_in_documents(path: Path) -> None:
    tokenizer = Tokenizer(path)
    (ids,) = tokenizer.encode_batch(["an ü-token"])
    assert ids[-1] == tokenizer.encode("ü-token")[0]


def test_a_published_limit_on_length_cuts_no_document(tmp_path: Path) -> None:
    limited = build()
    limited.enable_truncation(4)
    limited.enable_padding(length=6)
    tokenizer, whole = Tokenizer(save(limited, tmp_path / "limited.json")), Tokenizer(save(build(), tmp_path / "whole.json"))
    assert len(limited.encode(TEXTS[2]).ids) == 6  # what the file says
    assert tokenizer.encode_batch(TEXTS) == whole.encode_batch(TEXTS)
    assert tokenizer.encode(TEXTS[2]) == whole.encode(TEXTS[2])


def test_ids_are_below_the_vocabulary_size(path: Path) -> None:
    tokenizer = Tokenizer(path)
    assert tokenizer.vocab_size == 302 == build().get_vocab_size(with_added_tokens=True)
    assert max(i for ids in tokenizer.encode_batch(TEXTS) for i in ids) < 302
    assert tokenizer.encode("<|user|>") == [301]


def test_a_vocabulary_with_holes_counts_to_its_last_id(path: Path) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    for token in values["added_tokens"]:
        token["id"] += 10 * (token["content"] == "<|user|>")
    path.write_text(json.dumps(values), encoding="utf-8")
    assert HFTokenizer.from_file(str(path)).get_vocab_size() == 302
    assert Tokenizer(path).vocab_size == max(Tokenizer(path).encode("<|user|>")) + 1


# ---- bytes and identity ----------------------------------------------------------------------------------------------------


def test_token_bytes_sum_to_the_bytes_of_the_text(path: Path) -> None:
    tokenizer = Tokenizer(path)
    table = tokenizer.token_bytes()
    assert table is not None
    assert (table.shape, table.dtype) == ((tokenizer.vocab_size,), np.uint16)
    for text in [*TEXTS, "an ü-token"]:
        (ids,) = tokenizer.encode_batch([text])
        assert int(table[ids].sum()) == len(text.encode("utf-8"))


def test_a_token_of_more_than_65535_bytes_is_counted(tmp_path: Path) -> None:
    """As one is learned from a document of 131,072 equal letters."""
    tokenizer = HFTokenizer(models.BPE({"a": 0, "a" * 70_000: 1, END_OF_TEXT: 2}, []))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    tokenizer.decoder = decoders.ByteLevel()
    table = Tokenizer(save(tokenizer, tmp_path / "long.json")).token_bytes()
    assert table is not None
    assert table.tolist() == [1, 70_000, 0]
    options = WriterOptions("uint16", 3, 2)
    with ShardWriter(tmp_path / "shards", options) as writer:
        writer.add("a", ("a", "a.jsonl", 1), np.array([1, 2]), 70_000)
        writer.close(token_bytes=table)
    stored = Corpus(tmp_path / "shards").token_bytes()
    assert stored is not None
    assert stored.tolist() == [1, 70_000, 0]


def test_special_tokens_count_no_bytes(path: Path) -> None:
    tokenizer = Tokenizer(path)
    table = tokenizer.token_bytes()
    assert table is not None
    special = [tokenizer.encode(name)[0] for name in (END_OF_TEXT, "<|pad|>", "<|user|>")]
    assert np.flatnonzero(table == 0).tolist() == special


def test_a_tokenizer_that_is_not_byte_level_has_no_table_of_bytes(tmp_path: Path) -> None:
    words = HFTokenizer(models.WordLevel({"straße": 0, END_OF_TEXT: 1}, unk_token="straße"))
    assert Tokenizer(save(words, tmp_path / "words.json")).token_bytes() is None


def test_the_fingerprint_is_that_of_the_file(path: Path) -> None:
    before = Tokenizer(path).sha256
    assert before == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b"\n")
    assert Tokenizer(path).sha256 != before


def test_the_end_of_text_can_have_another_name(path: Path) -> None:
    assert Tokenizer(path).eos_id == 0
    assert Tokenizer(path, "<|pad|>").eos_id == 1


# ---- errors ----------------------------------------------------------------------------------------------------------------


def error_of(path: Path, end_of_text: str = END_OF_TEXT) -> str:
    with pytest.raises(ConfigError) as caught:
        Tokenizer(path, end_of_text)
    return str(caught.value)


def test_a_missing_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    remedy = "train a tokenizer with `olmo data tokenizer`, or give the path of one"
    assert error_of(tmp_path / "x.json") == f"{tmp_path / 'x.json'}: No such file or directory; {remedy}"
    assert error_of(tmp_path) == f"{tmp_path}: Is a directory; {remedy}"


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b'{"model": {"type": "none"}}', b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    assert error_of(path).startswith(f"{path} is not a tokenizers file: ")


def test_a_tokenizer_without_the_end_of_text_token_is_refused(path: Path) -> None:
    assert error_of(path, "<eos>") == f"{path} has no token '<eos>'; name its end-of-text token"
