"""The hub: nothing visible before it is whole, faults of the connection, concurrent commits; and fetching from it."""

import logging
import os
import signal
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpoints.fetch import fetch
from checkpoints.publish.hub_target import HubTarget
from checkpoints.publish.retry import Patience, is_disk_full, may_pass, retry, scrub
from checkpoints.publish.staging import Staged
from checkpoints.publish.stores import open_store
from checkpoints.release import MANIFEST
from olmo_train.errors import CheckpointError, ConfigError
from tests.checkpoints.publish.places import at_once, dies_after, is_whole, put, staged, target_at
from tests.hub_server import READER, WRITER, Entry, Fault, Hub

NAME = "owner/first"
PLACE = f"hub:{NAME}"
A, B = "stage1-step1-tokens1B", "stage1-step2-tokens2B"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")
LARGE = 120_000
"""Goes by parts."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload every file of weights on its own, as large ones are."""
    monkeypatch.setattr("checkpoints.publish.hub_target.ALONE", 10_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own attempts wait seconds in between; ours do not in tests."""
    clock = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.02)))
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)


def states(hub: Hub, branch: str) -> list[set[str]]:
    """Files of every state that a branch ever showed."""
    return [set(files) for name, files in hub.repos[NAME].history if name == branch]


def publish(release: Staged, replace: bool = False) -> bool:
    return put(PLACE, release, replace)


def assert_published(hub: Hub, release: Staged) -> None:
    """The revision is there, showed nothing else ever, and no other branch is left."""
    name = release.release.name
    assert is_whole(open_store(PLACE), name) == release.release
    assert states(hub, name) == [{*release.files, MANIFEST, ".gitattributes"}]
    assert set(hub.repos[NAME].branches) == {"main", *open_store(PLACE).revisions()}


def test_a_branch_never_shows_anything_but_its_own_release(hub: Hub, tmp_path: Path) -> None:
    first = staged(tmp_path / "1", 1)
    publish(first)
    target_at(PLACE).set_main("newest")
    hub.put(NAME, "main", "leftover.bin", b"of main alone")
    second = staged(tmp_path / "2", 2)
    publish(second)
    assert_published(hub, first)
    assert_published(hub, second)


def test_what_the_first_commit_holds_is_not_inherited(hub: Hub, tmp_path: Path) -> None:
    repo = hub.create(NAME)
    root = repo.commits[repo.branches["main"]]
    root.files["README.md"], root.files["pytorch_model.bin"] = Entry(b"the hub's", None), Entry(b"old", None)
    release = staged(tmp_path / "1")
    publish(release)
    assert_published(hub, release)


FAULTS = {
    "an upload cut after some bytes": Fault(r"PUT /lfs/put", cut_after=9000),
    "a part cut after some bytes": Fault(r"PUT /lfs/part/\w+/2", cut_after=9000),
    "an upload answered by 503": Fault(r"PUT /lfs", status=503, nth=2),
    "too many requests": Fault(r"POST .*batch", status=429, headers={"Retry-After": "1"}),
    "too many requests to commit": Fault(r"POST .*/commit/", status=429, headers={"Retry-After": "0"}, times=2),
    "an error of the server at the commit": Fault(r"POST .*/commit/", status=500),
    "a commit whose answer is lost": Fault(r"POST .*/commit/", lose_answer=True),
    "a staging branch whose answer is lost": Fault(r"POST .*/branch/publishing/stage1", lose_answer=True),
    "a revision whose answer is lost": Fault(r"POST .*/branch/stage1", lose_answer=True),
    "a revision answered by 502": Fault(r"POST .*/branch/stage1", status=502),
    "a list that breaks off": Fault(r"GET .*/tree/", cut_after=40, times=2),
    "an error page instead of an answer": Fault(r"POST /api/validate-yaml", status=503),
    "heads that cannot be listed": Fault(r"GET .*/refs", status=504, nth=3),
    "a removal answered by 500": Fault(r"DELETE .*/branch/publishing/stage1", status=500),
    "a removal whose answer is lost": Fault(r"DELETE .*/branch/publishing/stage1", lose_answer=True),
    "the creation of the repository lost": Fault(r"POST /api/repos/create", lose_answer=True),
    "a silent server": Fault(r"POST .*/preupload/", delay_s=1.5),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_does_not_matter(hub: Hub, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.seen = 0
    hub.faults.append(fault)
    release = staged(tmp_path / "1", size=LARGE if "part" in fault.pattern else 30_000)
    target = target_at(PLACE, timeout_s=1.0)
    target.prepare(None, True)
    assert target.put(release, False, lambda size: None)
    target.set_main("newest")
    assert fault.seen >= fault.nth
    assert_published(hub, release)
    assert is_whole(open_store(PLACE), "main").step == 1


@pytest.mark.parametrize(
    ("pattern", "status", "message"),
    [
        (r"POST .*/branch/publishing/stage1", 403, r"the token is not allowed to do this \(403\)"),
        (r"POST .*/branch/publishing/stage1", 401, "no such repository on .*, or it is private and the token is missing"),
        (r"POST .*/commit/", 409, "409"),
        (r"POST .*batch", 413, r"the hub has no room for it \(413\)"),
    ],
)
def test_a_fault_that_does_not_pass_is_told_at_once(hub: Hub, tmp_path: Path, pattern: str, status: int, message: str) -> None:
    hub.faults.append(Fault(pattern, status=status, times=99))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        publish(staged(tmp_path / "1"))
    assert hub.count(pattern) == (1 if "batch" not in pattern else hub.count(pattern))
    assert open_store(PLACE).revisions() == []
    assert [branch for branch in hub.repos[NAME].branches if branch.startswith("publishing/")] == []


def test_a_fault_that_stays_ends_after_the_attempts_and_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault(r"POST .*/commit/", status=503, times=99))
    said: list[str] = []
    target = target_at(PLACE, said.append)
    target.prepare(None, False)
    with pytest.raises(CheckpointError, match=r"503.*the same command goes on from here"):
        target.put(staged(tmp_path / "1"), False, lambda size: None)
    assert hub.count(r"POST .*/commit/") == 5
    assert f"; attempt 1 of 5, again in {said[0].split()[-2]} s" in said[0]
    assert list(hub.repos[NAME].branches) == ["main"]


def test_a_second_publishing_uploads_nothing(hub: Hub, tmp_path: Path) -> None:
    release = staged(tmp_path / "1")
    publish(release)
    uploaded, puts = hub.uploaded, hub.count("PUT ")
    assert not publish(release)
    assert (hub.uploaded, hub.count("PUT ")) == (uploaded, puts)


def test_a_cut_publishing_is_continued_without_uploading_again(hub: Hub, tmp_path: Path) -> None:
    release = staged(tmp_path / "1")
    assert at_once(tmp_path, lambda: dies_after(PLACE, release, 0.6)) == [signal.SIGKILL]
    before = hub.count("PUT /lfs/put")
    assert 1 <= before < 4
    assert publish(release)
    assert hub.count("PUT /lfs/put") == 4
    assert_published(hub, release)


def test_weights_shared_by_revisions_are_uploaded_once(hub: Hub, tmp_path: Path) -> None:
    publish(staged(tmp_path / "1"))
    puts = hub.count("PUT ")
    publish(staged(tmp_path / "2", texts=1), replace=True)
    assert hub.count("PUT ") == puts


def test_a_file_that_the_hub_does_not_take_keeps_the_revision_invisible(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .gitignore of the repository makes the library leave files out of a commit without a word."""
    hub.ignored = {"README.md"}
    with pytest.raises(
        CheckpointError, match=r"the commit for stage1-step1-tokens1B is not the release: README.md is missing; it was not"
    ):
        publish(staged(tmp_path / "1"))
    assert open_store(PLACE).revisions() == []


def test_main_is_compared_and_swapped(hub: Hub, tmp_path: Path) -> None:
    publish(staged(tmp_path / "1"))
    hub.faults.append(Fault(r"POST .*/commit/main", before=lambda: hub.put(NAME, "main", "config.json", b"by hand"), times=2))
    assert target_at(PLACE).set_main("newest") == (A, 1)
    assert hub.count(r"POST .*/commit/main") == 3
    assert is_whole(open_store(PLACE), "main").step == 1


def test_main_that_never_holds_still_is_an_error(hub: Hub, tmp_path: Path) -> None:
    publish(staged(tmp_path / "1"))
    hub.faults.append(Fault(r"POST .*/commit/main", before=lambda: hub.put(NAME, "main", "config.json", os.urandom(8)), times=99))
    with pytest.raises(CheckpointError, match="other commits to main came in between every time; run the same command again"):
        target_at(PLACE).set_main("newest")


def test_main_is_copied_within_the_hub(hub: Hub, tmp_path: Path) -> None:
    publish(staged(tmp_path / "1"))
    uploaded = hub.uploaded
    target_at(PLACE).set_main("newest")
    assert hub.uploaded == uploaded


def test_another_process_that_publishes_in_the_last_moment_wins(hub: Hub, tmp_path: Path) -> None:
    ours, theirs = staged(tmp_path / "ours"), staged(tmp_path / "theirs", content=1)
    put("hub:owner/elsewhere", theirs)
    target = target_at(PLACE)
    target.prepare(None, False)
    repo, other = hub.repos[NAME], hub.repos["owner/elsewhere"]
    repo.commits |= other.commits
    hub.faults.append(Fault(rf"POST .*/branch/{A}", before=lambda: repo.point(A, other.branches[A])))
    assert not target.put(ours, False, lambda size: None)
    assert_published(hub, theirs)


def test_a_replaced_revision_goes_from_one_whole_state_to_the_other(hub: Hub, tmp_path: Path) -> None:
    one, other = staged(tmp_path / "1"), staged(tmp_path / "2", content=1)
    publish(one)
    hub.put(NAME, A, "more.txt", b"by hand")
    assert publish(other, replace=True)
    assert [len(files) for files in states(hub, A)] == [10, 11, 10]
    assert is_whole(open_store(PLACE), A) == other.release


def test_damage_on_the_hub_is_found_by_its_sha256(hub: Hub, tmp_path: Path) -> None:
    release = staged(tmp_path / "1")
    publish(release)
    weights = "model-00001-of-00003.safetensors"
    hub.put(NAME, A, weights, bytes(release.files[weights][0]))
    assert target_at(PLACE).damage(release.release) == [f"{weights} has another SHA-256"]


def test_a_repository_is_as_private_as_asked(hub: Hub) -> None:
    target_at(PLACE).prepare(True, True)
    assert hub.repos[NAME].private
    with pytest.raises(
        ConfigError, match=r"private=false: hub:owner/first is private already; change it on the hub, or leave private out"
    ):
        target_at(PLACE).prepare(False, True)
    target_at(PLACE).prepare(None, True)


def test_without_a_token_nothing_is_tried(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"hub:owner/first: no token; log in with `hf auth login`, or set HF_TOKEN"):
        target_at(PLACE).prepare(None, True)
    assert hub.requests == []


def test_a_reader_cannot_publish(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(
        ConfigError, match=r"the token is not allowed to do this \(403\); it needs write access to the repository"
    ):
        target_at(PLACE).prepare(None, True)
    hub.create(NAME)
    with pytest.raises(ConfigError, match=r"\(403\)"):
        target_at(PLACE).prepare(None, True)


# ---- reading -----------------------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_was_cut(hub: Hub, tmp_path: Path) -> None:
    release = staged(tmp_path / "1", size=3_000_000)
    publish(release)
    hub.faults.append(Fault(r"GET /cdn/", cut_after=1_200_000, times=2))
    store = HubTarget(NAME, target_at(PLACE).manner).store  # type: ignore[attr-defined]
    with store.open(A, "model-00002-of-00003.safetensors") as file:
        assert file.read() == (release.folder / "model-00002-of-00003.safetensors").read_bytes()
    assert hub.count("GET /cdn/") == 3


def test_a_file_that_changes_while_it_is_read_is_an_error(hub: Hub, tmp_path: Path) -> None:
    release = staged(tmp_path / "1", size=3_000_000)
    publish(release)
    weights = "model-00002-of-00003.safetensors"
    hub.faults.append(Fault(r"GET /cdn/", cut_after=1_200_000))
    hub.faults.append(Fault(rf"GET .*/resolve/{A}/{weights}", nth=2, before=lambda: hub.put(NAME, A, weights, b"other")))
    with pytest.raises(CheckpointError, match="changed while it was read; read it again"):
        target_at(PLACE).store.read(A, weights)


def test_a_store_says_what_it_lacks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="hub:owner/nothing: no such repository on http.*, or it is private"):
        open_store("owner/nothing").revisions()
    hub.create(NAME)
    with pytest.raises(CheckpointError, match=r"hub:owner/first@stage1-step1-tokens1B: not there"):
        open_store(PLACE).files(A)
    with pytest.raises(CheckpointError, match=r"hub:owner/first@main/nothing.json: not there"):
        open_store(PLACE).read("main", "nothing.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set; unset it, or give a folder"):
        open_store(PLACE).revisions()


def test_fetch_brings_a_revision_and_compares_it(hub: Hub, tmp_path: Path) -> None:
    release = staged(tmp_path / "1")
    publish(release)
    folder = fetch(f"{NAME}@{A}")
    assert {path: (folder / path).read_bytes() for path in release.files} == {
        path: (release.folder / path).read_bytes() for path in release.files
    }
    hub.flip(NAME, A, "model-00001-of-00003.safetensors")
    assert fetch(f"{NAME}@{A}") == folder  # from the cache


@pytest.mark.parametrize("path", ["model-00001-of-00003.safetensors", "config.json"])
def test_a_bit_flipped_on_the_hub_is_found(hub: Hub, tmp_path: Path, path: str) -> None:
    publish(staged(tmp_path / "1"))
    hub.flip(NAME, A, path)
    with pytest.raises(CheckpointError, match=rf"(?s){path}: SHA-256 .*is not what its release.json says"):
        fetch(f"{NAME}@{A}")


def test_a_download_of_a_revision_that_was_cut_goes_on(hub: Hub, tmp_path: Path) -> None:
    publish(staged(tmp_path / "1", size=300_000))
    hub.faults.append(Fault(r"GET /cdn/", cut_after=100_000, times=2))
    fetch(f"{NAME}@{A}")


def test_fetch_says_why_it_cannot(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match="owner/nothing: not found on the hub http.*, or private, and the token is missing or not"
    ):
        fetch("owner/nothing")
    hub.create(NAME, private=True)
    with pytest.raises(ConfigError, match="owner/first@x: the repository is there, and has no revision x; see its branches"):
        fetch("owner/first@x")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongtoken0123456789")
    with pytest.raises(ConfigError, match="owner/first: not found on the hub .*log in with `hf auth login` or HF_TOKEN") as told:
        fetch("owner/first")
    assert "wrongtoken" not in str(told.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match="HF_HUB_OFFLINE is set, and it is not in the cache, or not whole; unset it once to fetch it"
    ):
        fetch("owner/first")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match="no answer from http://127.0.0.1:9, and it is not whole in the cache; what came until now"
    ):
        fetch("owner/first")


def test_a_release_fetched_before_is_found_without_a_connection(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(staged(tmp_path / "1"))
    folder = fetch(f"{NAME}@{A}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(f"{NAME}@{A}") == folder


def test_fetch_from_a_store_is_whole_and_kept(s3: str, tmp_path: Path) -> None:
    release = staged(tmp_path / "1")
    put(s3, release)
    folders = at_once(tmp_path, *[lambda: fetch(f"{s3}/{A}")] * 3)
    assert folders == [tmp_path / "cache/olmo_train/releases" / release.release.sha256] * 3
    assert {path: (folders[0] / path).read_bytes() for path in release.files} == {
        path: (release.folder / path).read_bytes() for path in release.files
    }
    assert [path.name for path in folders[0].parent.iterdir()] == [release.release.sha256]


def test_a_bit_flipped_in_a_store_is_found(s3: str, tmp_path: Path) -> None:
    release = staged(tmp_path / "1")
    put(s3, release)
    store = open_store(s3)
    data = bytearray(store.read(A, "config.json"))
    data[3] ^= 1
    store.fs.pipe_file(store.path(A, "config.json"), bytes(data))  # type: ignore[attr-defined]
    with pytest.raises(
        CheckpointError, match=r"config.json: SHA-256 .*, its release.json says .*: it changed where it lies or on its way"
    ):
        fetch(f"{s3}/{A}")
    store.fs.rm_file(store.path(A, MANIFEST))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="a folder without release.json is no release, or one that is not published yet"):
        fetch(f"{s3}/{A}")


# ---- attempts and secrets ----------------------------------------------------------------------------------------------


def test_waits_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("checkpoints.publish.retry.time.sleep", waits.append)

    def fails() -> None:
        raise ConnectionResetError("cut")

    with pytest.raises(ConnectionResetError):
        retry(fails, Patience(attempts=7, first_wait_s=1.0, max_wait_s=8.0))
    bounds = [1, 2, 4, 8, 8, 8]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert len(set(waits)) == 6


def test_a_full_disk_does_not_pass() -> None:
    assert not may_pass(OSError(28, os.strerror(28)))
    assert is_disk_full(RuntimeError(f"I/O error: {os.strerror(28)} (os error 28)"))
    assert not may_pass(FileNotFoundError())
    assert not may_pass(ValueError())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("bearer hf_abcdefghijklmnop!", "bearer hf_...!"),
        ("https://user:pass@host/x", "https://...@host/x"),
        ("{'authorization': 'Bearer sometoken'}", "{'authorization': '...'}"),
        ("PUT https://host/x?X-Amz-Signature=abc&y=1 failed", "PUT https://host/x?... failed"),
        ("stage1-step1-tokens1B: 3 of 4", "stage1-step1-tokens1B: 3 of 4"),
    ],
)
def test_secrets_are_taken_out_of_texts(text: str, clean: str) -> None:
    assert scrub(text) == clean


def test_a_token_in_the_environment_is_taken_out_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert scrub("key wJalrXUtnFEMI") == "key <AWS_SECRET_ACCESS_KEY>"


@pytest.mark.parametrize("fault", [Fault(r"PUT ", status=500, times=99), Fault(r"POST .*/commit/", status=403, times=99), None])
def test_no_token_is_ever_shown(
    hub: Hub, tmp_path: Path, fault: Fault | None, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults += [fault] if fault is not None else []
    said: list[str] = []
    target = target_at(PLACE, lambda text: said.append(text))
    target.prepare(None, True)
    told = ""
    try:
        target.put(staged(tmp_path / "1"), False, lambda size: None)
        target.set_main("newest")
    except (CheckpointError, ConfigError) as error:
        told = "".join(traceback.format_exception(error))
    assert bool(told) == (fault is not None)
    shown = capfd.readouterr()
    everything = "\n".join([told, shown.out, shown.err, caplog.text, *said])
    assert WRITER not in everything
    assert "signedsecret" not in "\n".join([told, shown.out, shown.err, *said])
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or WRITER.encode() not in path.read_bytes(), path
