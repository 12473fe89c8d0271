"""One pass over a file gives its hash and its tensors', whatever the pieces it comes in."""

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.verify import stream
from checkpoints.verify.stream import HEAD, HashedFile, read_tensors


class Dribble(io.BytesIO):
    """A connection that never gives more than three bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3 if size is None or size < 0 else min(size, 3))


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(7, 5, generator=generator),
        "b": torch.randn(300, generator=generator).bfloat16(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }


@pytest.mark.parametrize("source", [io.BytesIO, Dribble])
def test_hashes_are_those_of_the_whole_file_and_of_each_tensor(
    tensors: dict[str, torch.Tensor], source: type[io.BytesIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK", 64)
    save_file(tensors, tmp_path / "x", {"format": "pt"})
    data = (tmp_path / "x").read_bytes()
    file = HashedFile(source(data))
    found = read_tensors(file)
    assert file.sha256() == hashlib.sha256(data).hexdigest()
    assert file.n_bytes == len(data)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        assert (found[name].shape, found[name].sha256) == (tuple(tensor.shape), hashlib.sha256(raw).hexdigest())
        assert found[name].head == raw[:HEAD]


@pytest.mark.parametrize("source", [io.BytesIO, Dribble])
def test_lines_are_whole_whatever_the_blocks(source: type[io.BytesIO]) -> None:
    assert list(HashedFile(source(b"one\n\ntwo words\nlast")).lines()) == [b"one", b"", b"two words", b"last"]


def file_with(header: object, data: bytes = b"") -> HashedFile:
    text = json.dumps(header).encode()
    return HashedFile(io.BytesIO(len(text).to_bytes(8, "little") + text + data))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (HashedFile(io.BytesIO(b"\xff" * 100)), "its header would have 18446744073709551615 bytes"),
        (HashedFile(io.BytesIO(b"")), "its header cannot be used"),
        (file_with([1]), "its header cannot be used"),
        (file_with({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}), "is no place of a tensor"),
        (file_with({"a": {"dtype": "F32", "shape": [1]}}), "its header cannot be used"),
        (file_with({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678"), r"tensor a of F32 \[3\] has 8 bytes"),
        (file_with({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"12345"), "ends within tensor a, 3 bytes before"),
        (file_with({"a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"123"), "a lies at bytes 1 to 3 of the data, the one before it ends at 0"),
        (file_with({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"123"), "there are bytes after the last tensor"),
    ],
)  # fmt: skip
def test_what_is_no_whole_safetensors_file_is_refused(file: HashedFile, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tensors(file)
