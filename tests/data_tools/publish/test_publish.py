"""Releases to a folder, a store and a hub: whole or not there, continued after a failure, read back."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from huggingface_hub import constants

from data_tools.inspect import verify
from data_tools.publish import command
from data_tools.publish.manifest import NAME, Release, read_release
from data_tools.publish.opening import open_store
from data_tools.publish.stores import scrub
from olmo_train.errors import ConfigError, ShardError
from olmo_train.schema import load_config
from tests.data_tools.inspect.pipeline import Made
from tests.data_tools.publish.releases import SMALL, WORDS, files_of, said
from tests.data_tools.texts import refusal
from tests.hub_server import Fault, Hub

# ---- where it goes -----------------------------------------------------------------------------------------------------------


def check_place(place: str, words: list[str], release: Path, capsys: pytest.CaptureFixture[str]) -> Release:
    """Publish; again; another one; read back."""
    n_files = len(files_of(release)) - 1
    assert said(capsys, command.main, *words, f"target={place}").startswith(f"{place}: demo data published: {n_files} files, ")
    assert said(capsys, command.main, *words, f"target={place}").startswith(f"{place}: demo data was there already: ")
    message = refusal(command.main, [*words, f"target={place}", "description=Hens."], capsys)
    assert message == f"target={place} holds another release, which is never overwritten; give another target"
    told = said(capsys, verify.main, place)
    assert told.startswith(f"{place}: demo data, {n_files} files, ")
    assert told.endswith("every byte)\n")
    store = open_store(place)
    assert {path: b"".join(store.blocks(path)) for path in store.sizes() if path != ".gitattributes"} == files_of(release)
    return read_release(store.read(NAME) or b"", place)


def test_a_folder(here: Made, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    place = str(tmp_path / "out")
    from data_tools.publish import folder_store

    copied: list[Path] = []
    copy = folder_store.copy_hashed

    def failing(source: Path, target: Path) -> str:
        copied.append(source)
        if len(copied) == 20:
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(folder_store, "copy_hashed", failing)
    with pytest.raises(ShardError, match="No space left on device; the same command goes on from here"):
        command.main([*WORDS, f"target={place}"])
    assert not Path(place).exists()
    n_files = len(files_of(release)) - 1
    published = check_place(place, WORDS, release, capsys)
    assert len(copied) == n_files + 1  # none of the first 19 again
    assert list(tmp_path.iterdir()) == [Path(place)]
    path = next(p for p in published.files if p.endswith(".npy"))
    data = bytearray((tmp_path / "out" / path).read_bytes())
    data[5] ^= 1
    (tmp_path / "out" / path).write_bytes(data)
    (tmp_path / "out/more").write_text("")
    message = refusal(verify.main, [place], capsys)
    assert message.startswith(f"{place}: more is not in {NAME}\n{place}: {path} has SHA-256 ")
    (tmp_path / "out" / path).unlink()
    assert f"{place}: {path} is missing" in refusal(verify.main, [place], capsys)
    assert f"{path} is missing; more is not in {NAME}; remove it" in refusal(command.main, [*WORDS, f"target={place}"], capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    message = refusal(command.main, [*WORDS, f"target={tmp_path}/full"], capsys)
    assert message == f"target={tmp_path}/full holds files that no publishing wrote; give another target"


def test_an_object_store(here: Made, small: Path, s3: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    sent: list[str] = []
    fs = fsspec.filesystem("s3")
    put = fs.put_file

    def failing(source: str, target: str) -> Any:
        sent.append(target)
        if len(sent) == 10:
            raise OSError(5, "the network is gone")
        return put(source, target)

    monkeypatch.setattr(fs, "put_file", failing)
    with pytest.raises(ShardError, match="the network is gone; the same command goes on from here"):
        command.main([*SMALL, f"target={s3}"])
    with pytest.raises(ShardError, match=f"{s3}: no {NAME}: no release, or one that is not published yet"):
        verify.main([s3])
    message = refusal(command.main, [*SMALL, f"target={s3}", "description=Hens."], capsys)
    assert message == f"target={s3} holds the beginning of another release; finish that one, or remove what lies there"
    published = check_place(s3, SMALL, small, capsys)
    assert len(sent) == len(published.files) + 1
    nowhere = "s3://no-such-bucket-here/x"
    assert refusal(command.main, [*SMALL, f"target={nowhere}"], capsys).startswith((f"target={nowhere}: cannot", f"{nowhere}"))


def test_a_hub(here: Made, small: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults = [Fault(r"POST .*/commit/", status=503), Fault(r"POST .*/commit/", nth=2, lose_answer=True)]
    check_place("hf://owner/demo", SMALL, small, capsys)
    repo = hub.repos["owner/demo"]
    assert len([1 for branch, files in repo.history if NAME in files]) == 1  # it appeared whole
    hub.create("owner/other")
    hub.put("owner/other", "main", "mine.txt", b"mine")
    message = refusal(command.main, [*SMALL, "target=hf://owner/other"], capsys)
    assert message == "target=hf://owner/other holds files that no publishing wrote; give another target"
    monkeypatch.setenv("HF_TOKEN", "hf_readertoken0123456789")
    with pytest.raises(ConfigError, match="hf://owner/new: not allowed: "):
        command.main([*SMALL, "target=hf://owner/new"])


def test_a_damaged_manifest_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (b"{", b"[]", b'{"format": "x", "version": 1}'):
        (tmp_path / NAME).write_bytes(data)
        assert refusal(verify.main, [str(tmp_path)], capsys).startswith(f"{tmp_path}/{NAME}: is no manifest of a release: ")
    release = Release("x", "", {}, {}, {}, {"../x": {"bytes": 1, "sha256": "0"}})
    with pytest.raises(ShardError, match=r"'../x' is no file of a release"):
        read_release(release.to_bytes(), "here")


def test_what_arrives_otherwise_than_it_was_sent_is_not_published(here: Made, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("s3")
    put = fs.put_file

    def flipping(source: str, target: str) -> None:
        put(source, target)
        if target.endswith("README.md"):
            fs.pipe_file(target, fs.cat_file(target)[::-1])

    monkeypatch.setattr(fs, "put_file", flipping)
    with pytest.raises(ShardError, match=f"{s3}/README.md: did not arrive as it was sent; the same command sends it again"):
        command.main([*SMALL, f"target={s3}"])
    assert open_store(s3).read(NAME) is None


def test_a_folder_that_another_process_published_meanwhile_stays(here: Made, tmp_path: Path) -> None:
    place, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    config = load_config("publish_data", command.PublishDataConfig, [*SMALL, f"target={place}"])
    staged = command.stage_release(config, work)
    place.mkdir()
    (place / "theirs").write_text("theirs")
    with pytest.raises(ConfigError, match=f"target={place} appeared while it was being made; nothing of it was changed"):
        open_store(str(place)).put(staged, print)
    assert files_of(place) == {"theirs": b"theirs"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]
    source = next(path for path in staged.files.values() if path.name == "README.md")
    source.write_text(source.read_text()[::-1])
    with pytest.raises(ShardError, match="README.md: changed while it was being published; run the same command again"):
        open_store(str(tmp_path / "new")).put(staged, print)


def test_a_hub_needs_a_token(here: Made, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    message = refusal(command.main, [*SMALL, "target=hf://owner/new"], capsys)
    assert message == "hf://owner/new: no token; log in with `hf auth login`, or set HF_TOKEN"


def test_secrets_are_not_shown() -> None:
    told = scrub("https://me:pass@x.org/a?sig=1 hf_abcdefghij0123")
    assert told == "https://...@x.org/a?... ..."
