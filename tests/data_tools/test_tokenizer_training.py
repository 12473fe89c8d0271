"""Training a tokenizer: the same file from the same text, every byte covered, and nothing written where it fails."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as HFTokenizer

from data_tools.documents import Document, read_documents, write_documents
from data_tools.tokenize import train_tokenizer
from olmo_train.tokenizer import END_OF_TEXT, Tokenizer
from tests.data_tools.texts import make_documents, refusal, write_lines


def train(documents: Path, output: Path, *overrides: str) -> Tokenizer:
    train_tokenizer.main([f"documents=[{documents}]", f"output={output}", *overrides])
    return Tokenizer(output)


def test_the_tokenizer_has_the_size_asked_for_and_says_so(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(documents, tmp_path / "new/folder/t.json", "vocab_size=290")
    assert (made.vocab_size, made.eos_id) == (290, 0)
    line = f"{tmp_path}/new/folder/t.json: 290 ids, end of text 0, SHA-256 {made.sha256[:16]}...\n"
    assert capsys.readouterr().out == line
    assert [p.name for p in (tmp_path / "new/folder").iterdir()] == ["t.json"]


def test_the_same_text_gives_the_same_file(documents: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "same.jsonl.gz", read_documents(documents))
    one = train(documents, tmp_path / "one.json", "vocab_size=300")
    two = train(tmp_path / "same.jsonl.gz", tmp_path / "two.json", "vocab_size=300")
    assert one.sha256 == two.sha256


def test_bytes_that_training_never_saw_are_tokens(tmp_path: Path) -> None:
    made = train(write_lines(tmp_path / "x.jsonl", make_documents(5)), tmp_path / "t.json", "vocab_size=257")
    text = "".join(chr(c) for c in range(0x250)) + "한글 \U0001f600"
    (ids,) = made.encode_batch([text])
    assert made.decode(ids) == text
    assert len(ids) == len(text.encode("utf-8"))  # 257 ids are the bytes and end of text: no merges


def test_the_pieces_are_those_of_gpt_neox_and_olmo(tokenizer: Path) -> None:
    """NFC, no space before the first word, the pattern of GPT-2; frequent words became one token."""
    made = HFTokenizer.from_file(str(tokenizer))
    assert made.normalizer.normalize_str("e\u0301") == "é"
    pieces = [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str("It's 12 x=1; fox")]
    assert pieces == ["It", "'s", "Ġ12", "Ġx", "=", "1", ";", "Ġfox"]
    assert len(Tokenizer(tokenizer).encode(" fox the")) < len(" fox the")


def test_end_of_text_in_the_documents_is_learned_as_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_documents(path, [Document(str(i), f"{END_OF_TEXT} abc" * 20, "s") for i in range(20)])
    made = train(path, tmp_path / "t.json", "vocab_size=262")
    (ids,) = made.encode_batch([END_OF_TEXT])
    assert made.eos_id not in ids
    assert made.decode(ids) == END_OF_TEXT


def test_max_bytes_takes_the_front_of_the_text(tmp_path: Path) -> None:
    first, second = "ab " * 400, "xy " * 4000
    write_documents(tmp_path / "both.jsonl", [Document("1", first, "s"), Document("2", second, "s")])
    write_documents(tmp_path / "first.jsonl", [Document("1", first, "s")])
    limited = train(tmp_path / "both.jsonl", tmp_path / "limited.json", "vocab_size=258", f"max_bytes={len(first)}")
    assert limited.sha256 == train(tmp_path / "first.jsonl", tmp_path / "first.json", "vocab_size=258").sha256
    assert limited.sha256 != train(tmp_path / "both.jsonl", tmp_path / "both.json", "vocab_size=258").sha256


def test_too_little_text_is_an_error_that_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"id": "1", "text": "ab ab ab", "source": "s"}])
    message = refusal(train_tokenizer.main, [f"documents=[{path}]", f"output={tmp_path}/new/t.json", "vocab_size=5000"], capsys)
    assert message == "vocab_size=5000: the text has only enough pairs for 259; give more text or a smaller vocabulary"
    assert not (tmp_path / "new").exists()


def test_bad_values_are_refused_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(train_tokenizer.main, [f"output={tmp_path}/t.json", "vocab_size=256", "max_bytes=0"], capsys)
    for line in (
        "documents is empty; give files, folders or globs of Dolma documents",
        "vocab_size=256 must be more than 256, the bytes themselves, plus end of text",
        "max_bytes=0 must be positive; null takes all of the text",
    ):
        assert line in message
    assert refusal(train_tokenizer.main, ["documents=[x]"], capsys) == "output is missing: give output=<str>"


def test_missing_documents_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(train_tokenizer.main, [f"documents=[{tmp_path}/x]", f"output={tmp_path}/t.json"], capsys)
    assert message.startswith(f"documents: nothing matches {tmp_path}/x; give a ")
