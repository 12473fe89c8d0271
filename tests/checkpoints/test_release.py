"""The format of a release: one rule for names, one spelling of the manifest, a digest that files do not enter."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from checkpoints.release import (
    Release,
    index_bytes,
    index_entry,
    parse_revision,
    read_index,
    read_release,
    read_release_folder,
    revision_name,
    weights_digest,
)
from olmo_train.errors import CheckpointError

TENSORS: dict[str, dict[str, Any]] = {
    "a": {"dtype": "F32", "shape": [2], "file": "model.safetensors", "sha256": "00"},
    "b": {"dtype": "F32", "shape": [2, 3], "file": "model.safetensors", "sha256": "11"},
}
RELEASE = Release(
    name="stage1-step10-tokens0B", run="first", stage=1, step=10, tokens=2560, loss=3.5, architecture="OlmoeForCausalLM",
    dtype="float32", is_exact=True, parameters={"total": 8, "active": 8}, weights_sha256=weights_digest(TENSORS), parent=None,
    code=None, data={}, evaluations=[], has_optimizer=False, files={}, tensors=TENSORS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "step", "tokens", "name"),
    [
        (1, 0, 0, "stage1-step0-tokens0B"),
        (1, 1000, 4_194_304_000, "stage1-step1000-tokens4B"),
        (1, 10_000, 41_943_040_000, "stage1-step10000-tokens41B"),
        (1, 928_646, 3_895_020_158_976, "stage1-step928646-tokens3895B"),  # published by others as 3896B
        (2, 23_852, 999_999_999, "stage2-step23852-tokens0B"),
    ],
)
def test_a_name_never_claims_tokens_that_were_not_seen(stage: int, step: int, tokens: int, name: str) -> None:
    assert revision_name(stage, step, tokens) == name
    assert parse_revision(name) == (stage, step, tokens // 10**9)


@pytest.mark.parametrize(
    "name", ["main", "step1000-tokens4B", "stage1-step1000", "stage1-step1000-tokens4B-x", "xstage1-step1-tokens1B"]
)
def test_other_names_are_not_taken_for_revisions(name: str) -> None:
    assert parse_revision(name) is None


def test_a_manifest_is_read_as_it_was_written() -> None:
    text = RELEASE.to_bytes()
    again = read_release(text, "here")
    assert again == RELEASE
    assert again.to_bytes() == text
    assert RELEASE.sha256 == hashlib.sha256(text).hexdigest()


def test_the_digest_of_weights_sees_values_and_names_but_no_files() -> None:
    digest = weights_digest(TENSORS)
    assert weights_digest(dict(reversed(TENSORS.items()))) == digest
    assert (
        weights_digest({name: {**entry, "file": "model-00001-of-00002.safetensors"} for name, entry in TENSORS.items()}) == digest
    )
    for field, value in (("sha256", "22"), ("shape", [3]), ("dtype", "BF16")):
        assert weights_digest(TENSORS | {"a": {**TENSORS["a"], field: value}}) != digest
    assert weights_digest({"c": TENSORS["a"], "b": TENSORS["b"]}) != digest


def _edited(**values: Any) -> bytes:
    return json.dumps(json.loads(RELEASE.to_bytes()) | values).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "not of format olmo_train.release version 1"),
        (_edited(format="other"), "not of format olmo_train.release version 1"),
        (_edited(version=2), "not of format olmo_train.release version 1"),
        (_edited(extra=1), "unknown or missing fields: extra"),
        (
            json.dumps({"format": "olmo_train.release", "version": 1, "name": "x"}).encode(),
            "unknown or missing fields: architecture",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"(?s)there/release.json cannot be used: .*{reason}.*; fetch it again"):
        read_release(text, "there")


def test_a_folder_without_manifest_is_no_release(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory; not a release, or one that was never finished"):
        read_release_folder(tmp_path)
    (tmp_path / "release.json").write_bytes(RELEASE.to_bytes())
    assert read_release_folder(tmp_path) == RELEASE


def test_the_index_lists_releases_by_stage_and_step() -> None:
    releases = [
        replace(RELEASE, stage=stage, step=step, name=revision_name(stage, step, 0)) for stage, step in ((2, 5), (1, 20), (1, 3))
    ]
    entries = read_index(index_bytes(map(index_entry, releases)), "there")
    assert [(entry.stage, entry.step) for entry in entries] == [(1, 3), (1, 20), (2, 5)]
    assert {entry.release_sha256 for entry in entries} == {release.sha256 for release in releases}
    assert entries[0].tokens == RELEASE.tokens


@pytest.mark.parametrize("text", [b"", b"{}", b'{"format": "olmo_train.releases", "version": 1, "releases": [{"name": "x"}]}'])
def test_an_index_that_cannot_be_used_is_refused(text: bytes) -> None:
    with pytest.raises(
        CheckpointError, match=r"there/checkpoints.json cannot be used: .*; any `olmo publish` to this target writes"
    ):
        read_index(text, "there")
