"""Every kind of target: whole or absent, again without upload, cut and continued, several at once; and the stores that read them."""

import os
import signal
import socket
import time
from pathlib import Path

import fsspec
import pytest

from checkpoints.publish.claims import Claim, Timing, machine
from checkpoints.publish.file_store import FileStore
from checkpoints.publish.filling import fill
from checkpoints.publish.retry import Patience
from checkpoints.publish.stores import open_store
from checkpoints.publish.targets import read_entries
from checkpoints.release import MANIFEST, index_bytes, index_entry, read_index
from olmo_train.errors import CheckpointError, ConfigError
from tests.checkpoints.publish.places import at_once, breaking, contents, dies_after, is_whole, put, staged, target_at

A = "stage1-step1-tokens1B"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


def test_a_published_revision_is_whole_and_read_by_name(place: str, tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    assert put(place, release)
    store = open_store(place)
    assert store.revisions() == [A]
    assert is_whole(store, A) == release.release
    assert store.files(A)["config.json"] == len(store.read(A, "config.json"))
    with pytest.raises(CheckpointError, match="not there"):
        store.read(A, "nothing.json")
    with pytest.raises(CheckpointError, match=r"not there|no such release"):
        store.files("stage1-step9-tokens9B")


def test_revisions_come_by_stage_and_step(place: str, tmp_path: Path) -> None:
    for step in (10, 2):
        put(place, staged(tmp_path / str(step), step))
    assert open_store(place).revisions() == ["stage1-step2-tokens2B", "stage1-step10-tokens10B"]


def test_an_empty_place_has_no_revisions(tmp_path: Path, s3: str) -> None:
    assert open_store(str(tmp_path / "no such folder")).revisions() == []
    assert open_store(s3).revisions() == []


@pytest.mark.parametrize("frac", [0.1, 0.6, 0.9])
def test_a_publisher_killed_on_the_way_leaves_nothing_visible_and_the_next_one_finishes(
    place: str, tmp_path: Path, frac: float
) -> None:
    release = staged(tmp_path / "one")
    assert at_once(tmp_path, lambda: dies_after(place, release, frac)) == [signal.SIGKILL]
    store = open_store(place)
    assert store.revisions() == []
    assert put(place, release)
    is_whole(store, A)


def test_what_is_published_is_not_written_again(place: str, tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    put(place, release)
    before = contents(open_store(place), A)
    assert not put(place, release)
    assert not put(place, staged(tmp_path / "other", content=1))
    assert contents(open_store(place), A) == before


def test_replace_makes_it_the_other_release(place: str, tmp_path: Path) -> None:
    put(place, staged(tmp_path / "one"))
    other = staged(tmp_path / "other", content=1, texts=1)
    assert put(place, other, replace=True)
    assert is_whole(open_store(place), A) == other.release


def test_damage_is_told(place: str, tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    put(place, release)
    assert target_at(place).damage(release.release) == []
    other = staged(tmp_path / "other", size=20_000)
    assert "model-00001-of-00003.safetensors has 30001 bytes, not 20001" in target_at(place).damage(other.release)


def test_the_same_release_published_by_several_at_once_is_there_once(place: str, tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    open_hub(place)
    results = at_once(tmp_path, *[lambda: put(place, release)] * 3)
    assert set(results) <= {True, False}
    assert any(results)
    is_whole(open_store(place), A)
    assert open_store(place).revisions() == [A]


def test_of_different_contents_at_once_one_wins_and_nothing_is_mixed(place: str, tmp_path: Path) -> None:
    releases = [staged(tmp_path / str(n), content=n) for n in range(3)]
    open_hub(place)
    results = at_once(tmp_path, *[lambda release=release: put(place, release) for release in releases])  # type: ignore[misc]
    assert sorted(results) == [False, False, True]
    assert is_whole(open_store(place), A) == releases[results.index(True)].release


def test_different_revisions_at_once_all_come_into_the_index(place: str, tmp_path: Path) -> None:
    releases = [staged(tmp_path / str(n), step=n) for n in (1, 2, 3, 4)]
    open_hub(place)

    def publish(n: int) -> object:
        put(place, releases[n])
        return target_at(place).set_main("newest")

    at_once(tmp_path, *[lambda n=n: publish(n) for n in range(4)])  # type: ignore[misc]
    store = open_store(place)
    assert [entry.step for entry in read_index(store.read("main", "checkpoints.json"), place)] == [1, 2, 3, 4]
    assert store.read("main", "checkpoints.json") == index_bytes(index_entry(release.release) for release in releases)
    assert is_whole(store, "main").step == 4


def test_main_is_the_newest_the_chosen_or_left_alone(place: str, tmp_path: Path) -> None:
    for step in (1, 2):
        put(place, staged(tmp_path / str(step), step))
    target, store = target_at(place), open_store(place)
    assert target.set_main(None) == (None, 2)
    assert MANIFEST not in store.read("main", "checkpoints.json").decode()
    assert target.set_main(A) == (A, 2)
    assert is_whole(store, "main").step == 1
    assert target.set_main("newest") == ("stage1-step2-tokens2B", 2)
    assert is_whole(store, "main").step == 2
    before = contents(store, "main")
    assert target.set_main("newest") == ("stage1-step2-tokens2B", 2)
    assert contents(store, "main") == before
    with pytest.raises(
        ConfigError, match=r"main=stage1-step7-tokens7B is not a release of .*; there are: stage1-step1-tokens1B, stage1-step2"
    ):
        target.set_main("stage1-step7-tokens7B")


def test_what_only_has_the_name_of_a_release_is_not_in_the_index(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    put(place, staged(tmp_path / "one"))
    name = "stage1-step5-tokens5B"
    if place.startswith("hub:"):
        request.getfixturevalue("hub").repos["owner/first"].point(
            name, request.getfixturevalue("hub").repos["owner/first"].branches["main"]
        )
    else:
        fs, root = fsspec.core.url_to_fs(place)
        fs.makedirs(f"{root}/{name}", exist_ok=True)
        fs.pipe_file(f"{root}/{name}/config.json", b"{}")
        assert name not in open_store(place).revisions()
    said: list[str] = []
    assert list(read_entries(open_store(place), target_at(place, said.append).manner)) == [A]  # type: ignore[attr-defined]
    assert bool(said) == place.startswith("hub:")


def test_a_main_that_is_not_ours_is_not_overwritten(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if place.startswith("hub:"):
        hub = request.getfixturevalue("hub")
        hub.create("owner/first")
        hub.put("owner/first", "main", "model.safetensors", b"someone's")
    else:
        fs, root = fsspec.core.url_to_fs(place)
        fs.makedirs(f"{root}/main", exist_ok=True)
        fs.pipe_file(f"{root}/main/model.safetensors", b"someone's")
    with pytest.raises(ConfigError, match="holds files that no publishing wrote"):
        target_at(place).prepare(None, True)
    target_at(place).prepare(None, False)


def test_private_is_for_hubs(tmp_path: Path, s3: str) -> None:
    for place in (str(tmp_path / "x"), s3):
        with pytest.raises(ConfigError, match="private=true is for hubs"):
            target_at(place).prepare(True, False)


def open_hub(place: str) -> None:
    """Processes at once shall meet at the revisions, not at the creation of the repository alone."""
    target_at(place).prepare(None, False)


# ---- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_left_without_anything_but_releases_and_main(tmp_path: Path) -> None:
    put(str(tmp_path / "to"), staged(tmp_path / "one"))
    target_at(str(tmp_path / "to")).set_main("newest")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["main", A]


def test_texts_of_main_are_copies_and_weights_links(tmp_path: Path) -> None:
    put(str(tmp_path / "to"), staged(tmp_path / "one"))
    target_at(str(tmp_path / "to")).set_main("newest")
    assert not os.path.samefile(tmp_path / "to/main/README.md", tmp_path / f"to/{A}/README.md")
    weights = "model-00001-of-00003.safetensors"
    assert os.path.samefile(tmp_path / "to/main" / weights, tmp_path / "to" / A / weights)


def test_a_file_that_still_belongs_to_the_run_is_copied(tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    os.link(release.folder / "training/state.json", tmp_path / "of the run")
    put(str(tmp_path / "to"), release)
    assert not os.path.samefile(tmp_path / "of the run", tmp_path / f"to/{A}/training/state.json")


def test_half_a_file_that_a_killed_publisher_left_is_not_taken(tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    work = tmp_path / "to/.publishing" / f"{A}-{release.release.sha256[:16]}"
    work.mkdir(parents=True)
    (work / "README.md").write_bytes(bytes(release.files["README.md"][0]))
    assert put(str(tmp_path / "to"), release)
    is_whole(open_store(str(tmp_path / "to")), A)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"target=.*file/x cannot be written: Not a directory"):
        target_at(str(tmp_path / "file" / "x")).prepare(None, True)


def test_a_manifest_that_leads_out_of_the_release_is_refused(tmp_path: Path) -> None:
    for path in ("../x", "/etc/x", "a/../../x", ""):
        with pytest.raises(CheckpointError, match="is not inside the release; do not use it"):
            fill(tmp_path / "work", {path: (1, "0")}, lambda path: (tmp_path / path).open("rb"), "there", 1, lambda size: None)


def test_a_staged_folder_that_changed_is_not_published(tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    (release.folder / "README.md").write_text("changed")
    from checkpoints.publish.staging import check_staged

    with pytest.raises(
        CheckpointError, match=r"stage1-step1-tokens1B is not as it was built, and was not published: .*README.md: 7 bytes"
    ):
        check_staged(release.folder, release.release)
    (release.folder / MANIFEST).write_text("{}")
    (release.folder / "more").write_text("")
    with pytest.raises(CheckpointError, match=r"more: not in the manifest; .*release.json: not the manifest of"):
        check_staged(release.folder, release.release)


# ---- object stores -----------------------------------------------------------------------------------------------------


def test_a_continued_upload_keeps_what_is_there(s3: str, tmp_path: Path) -> None:
    release = staged(tmp_path / "one")
    at_once(tmp_path, lambda: dies_after(s3, release, 0.5))
    fs, root = fsspec.core.url_to_fs(s3)
    before = {entry["name"]: entry["LastModified"] for entry in fs.find(f"{root}/{A}", detail=True).values()}
    assert 1 < len(before) < 8
    time.sleep(1.1)  # the store's clock has seconds
    put(s3, release)
    fs.invalidate_cache()
    after = {entry["name"]: entry["LastModified"] for entry in fs.find(f"{root}/{A}", detail=True).values()}
    assert {name: after[name] for name in before} == before
    assert len(after) == 9


def test_what_another_content_left_unfinished_is_not_taken(s3: str, tmp_path: Path) -> None:
    at_once(tmp_path, lambda: dies_after(s3, staged(tmp_path / "one"), 0.8))
    other = staged(tmp_path / "other", content=1)
    put(s3, other)
    assert is_whole(open_store(s3), A) == other.release


def test_broken_connections_to_a_store_are_tried_again(
    s3: str, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = staged(tmp_path / "one")
    once = {"retries": {"max_attempts": 0}}  # of botocore: the attempts shall be ours
    options = fsspec.config.conf["s3"]
    with breaking(moto, 4) as address:
        client = {**options["client_kwargs"], "endpoint_url": address}
        monkeypatch.setitem(fsspec.config.conf, "s3", {**options, "client_kwargs": client, "config_kwargs": once})
        assert put(s3, release)
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    is_whole(open_store(s3), A)


def test_a_store_that_does_not_answer_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = fsspec.config.conf["s3"]
    client = {**options["client_kwargs"], "endpoint_url": "http://127.0.0.1:9"}
    once = {"retries": {"max_attempts": 0}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {**options, "client_kwargs": client, "config_kwargs": once})
    target = target_at(s3, patience=Patience(2, 0.01, 0.1))
    with pytest.raises(CheckpointError, match=r"s3://.*127.0.0.1:9.*; the same command goes on from here") as told:
        target.store.revisions()
    assert "s3secret" not in str(told.value)


def test_a_bucket_that_is_not_there_is_told(s3: str) -> None:
    with pytest.raises(ConfigError, match=r"target=s3://no-such-bucket/x.*does the bucket exist\?"):
        target_at("s3://no-such-bucket/x").prepare(None, False)


def test_a_claim_for_the_same_content_does_not_wait(s3: str) -> None:
    store = FileStore(s3)
    with Claim(store, A, "content", Timing(60.0, 180.0)), Claim(store, A, "content", Timing(60.0, 180.0)):
        pass
    assert store.fs.find(store.path(".publishing")) == []


def test_a_claim_for_another_content_waits_until_the_first_is_gone(s3: str, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def hold(content: str) -> None:
        with Claim(FileStore(s3), A, content, Timing(0.05, 1.0)), log.open("a") as file:
            file.write(f"{content} begins\n")
            file.flush()
            time.sleep(1.2)  # longer than the expiry: it lives by its beats
            file.write(f"{content} ends\n")

    at_once(tmp_path, lambda: hold("a"), lambda: hold("b"), lambda: hold("c"))
    words = log.read_text().split()
    assert words[0::2] == [content for content in words[0::4] for _ in range(2)], words


def test_a_claim_left_over_by_a_dead_process_is_removed_at_once(s3: str, tmp_path: Path) -> None:
    def die() -> None:
        Claim(FileStore(s3), A, "a", Timing(60.0, 180.0)).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert at_once(tmp_path, die) == [signal.SIGKILL]
    with Claim(FileStore(s3), A, "b", Timing(60.0, 180.0)):
        pass


def test_a_claim_of_another_machine_that_stands_still_expires(s3: str) -> None:
    store, said = FileStore(s3), []
    store.said = said.append
    store.fs.pipe_file(store.path(".publishing", A, "x.json"), b'{"content": "a", "machine": "elsewhere", "pid": 1, "beats": 3}')
    with Claim(store, A, "b", Timing(0.05, 0.3)):
        assert store.fs.exists(store.path(".publishing", A, "x.json")) is False
    assert said == [f"{s3}/{A}: another process (on elsewhere) writes there, waiting"]


def test_a_publisher_whose_claim_was_taken_away_stops(s3: str, tmp_path: Path) -> None:
    release, target = staged(tmp_path / "one"), target_at(s3, workers=1)

    def lose(size: int) -> None:
        fs, root = fsspec.core.url_to_fs(s3)
        fs.rm(f"{root}/.publishing/{A}", recursive=True)

    with pytest.raises(CheckpointError, match="its claim is gone: this process stood still longer than"):
        target.put(release, False, lose)
    assert open_store(s3).revisions() == []


def test_a_machine_is_its_host_and_its_process_ids() -> None:
    assert machine().startswith(socket.gethostname())


def test_where_a_store_is_shows_no_password(tmp_path: Path) -> None:
    assert "secret" not in FileStore("memory://user:secret@host/x").where


def test_a_file_system_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing://x: .*nothing"):
        open_store("nothing://x")
    with pytest.raises(ConfigError, match="hub:owner is not a hub repository: hub:owner/name"):
        open_store("hub:owner")


def test_a_folder_goes_before_a_repository_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("runs/first").where == "hub:runs/first"
    (tmp_path / "runs/first").mkdir(parents=True)
    assert open_store("runs/first").where == "runs/first"
