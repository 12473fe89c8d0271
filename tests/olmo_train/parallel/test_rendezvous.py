"""Ranks find each other by a file or by torchrun's store; who does not come is named."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from olmo_train.attempt import EndKind, RankEnd, write_end
from olmo_train.config.faults import FaultsConfig
from olmo_train.errors import ConfigError, PeerError, RendezvousError
from olmo_train.parallel import rendezvous
from olmo_train.parallel.rendezvous import FILE, expand, meet, own_addresses
from tests.distributed import collect, spawn, start
from tests.olmo_train.parallel.watched_ranks import FACTS, become

BRIEF = FaultsConfig(hang_at_start_s=4.0)


def come(folder: Path, is_by_file: bool, absent: tuple[int, ...] = (), **other: Any) -> Any:
    """Meet; return what this rank learned, or the error with its class."""
    rank, n_ranks = become(folder, is_by_file)
    if rank in absent:
        time.sleep(8)
        return "absent"
    facts = FACTS | (other if rank == n_ranks - 1 else {})
    if rank == 1 and "clock" in other:
        real = time.time
        time.time = lambda: real() + other["clock"]
        facts = FACTS
    try:
        meeting = meet(rank, n_ranks, facts, BRIEF if absent else FaultsConfig())
    except (RendezvousError, PeerError, ConfigError) as error:
        time.sleep(1)  # rank 0's hub lives in this process
        return f"{type(error).__name__}: {error}", getattr(error, "nodes", None)
    meeting.store.set(f"rank{rank}", "here")
    meeting.store.wait([f"rank{other}" for other in range(n_ranks)])
    if rank == 0:
        time.sleep(1)
        return meeting.hub.clock_offsets() if meeting.hub is not None else None
    return meeting.main_node, meeting.clock_offset_s


@pytest.mark.parametrize("is_by_file", [True, False])
def test_ranks_meet_without_a_fixed_port(tmp_path: Path, is_by_file: bool) -> None:
    offsets, *others = spawn(come, 3, tmp_path, is_by_file)
    assert sorted(offsets) == ["n0", "n1", "n2"]
    assert [node for node, _ in others] == ["n0", "n0"]
    assert (tmp_path / FILE).exists() == is_by_file


def test_a_clock_that_differs_is_measured_and_matters_to_nothing(tmp_path: Path) -> None:
    offsets, (_, offset), _ = spawn(_come_with_a_wrong_clock, 3, tmp_path)
    assert offset == pytest.approx(7.5, abs=1.0)
    assert offsets["n1"] == pytest.approx(7.5, abs=1.0)
    assert offsets["n2"] == pytest.approx(0.0, abs=1.0)


def _come_with_a_wrong_clock(folder: Path) -> Any:
    return come(folder, True, clock=7.5)


def _come_with_other_code(folder: Path) -> Any:
    return come(folder, True, code="2 in /elsewhere")


def test_ranks_with_other_code_are_refused_on_all_ranks(tmp_path: Path) -> None:
    told = "ConfigError: ranks differ: rank 2 on n2: code is 2 in /elsewhere, and 1 in / on rank 0 on n0"
    for message, _ in spawn(_come_with_other_code, 3, tmp_path):
        assert message == f"{told}; all must run the same code and config"


def test_ranks_that_never_come_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = spawn(_come_without_rank_2, 3, tmp_path)
    assert first == ("RendezvousError: ranks did not come in time: 1 of 3 missing: rank 2 on n2; see their logs", ["n2"])
    assert second[0].startswith(("PeerError: rank 0 on n0 ended", "PeerError: rank 0 on n0 failed", "PeerError: rank 0"))


def _come_without_rank_2(folder: Path) -> Any:
    os.environ["SLURM_STEP_NODELIST"] = "n[0-2]"
    result = come(folder, True, absent=(2,))
    if os.environ["RANK"] == "0":  # as run_rank does
        write_end(folder, RankEnd(0, "n0", EndKind.FAILED, 1, 0, "missing"))
    return result


def test_if_rank_0_never_comes_the_file_is_named(tmp_path: Path) -> None:
    _, (message, _), _ = spawn(_come_without_rank_0, 3, tmp_path)
    assert message.startswith(f"RendezvousError: rank 0 did not come: it wrote no {tmp_path / FILE}. Its log says why")


def _come_without_rank_0(folder: Path) -> Any:
    return come(folder, True, absent=(0,))


def test_a_rank_that_failed_before_the_others_met_is_told_at_once(tmp_path: Path) -> None:
    write_end(tmp_path, RankEnd(2, "n2", EndKind.EXCEPTION, 1, 0, "ModuleNotFoundError: No module named 'wonder'"))
    *came, _ = spawn(come, 3, tmp_path, True, (2,))
    for message, _ in came:
        assert message == "PeerError: rank 2 on n2 ended before all ranks had met: ModuleNotFoundError: No module named 'wonder'"


def _come_to_one_that_is_stopped(folder: Path) -> Any:
    rendezvous.CONNECT_S, rendezvous.LATE_S = 0.2, 1.0
    while os.environ["RANK"] != "0" and not (folder / "stopped").exists():
        time.sleep(0.05)
    return come(folder, True, (2,) if (folder / "for good").exists() else ())


def stop_rank_0(folder: Path, seconds: float, later_s: float = 0.0) -> list[Any]:
    """Three ranks meet, the first of which is stopped: before the others know it, or later. Return what each returned."""
    ranks = start(_come_to_one_that_is_stopped, 3, folder)
    while not (folder / FILE).exists():
        time.sleep(0.02)
    if later_s:
        (folder / "stopped").touch()
        time.sleep(later_s)
    os.kill(ranks[0].process.pid, signal.SIGSTOP)
    (folder / "stopped").touch()
    ranks[1].process.join(seconds)
    os.kill(ranks[0].process.pid, signal.SIGCONT)
    return collect(ranks)


def test_rank_0_may_be_stopped_for_a_while(tmp_path: Path) -> None:
    offsets, *_ = stop_rank_0(tmp_path, 4.0)
    assert sorted(offsets) == ["n0", "n1", "n2"]


def test_a_rank_0_that_stops_for_good_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "for good").touch()
    began = time.monotonic()
    _, told, _ = stop_rank_0(tmp_path, 60.0, later_s=1.5)
    assert told == ("RendezvousError: rank 0 on n0 has fallen silent before all ranks had met", ["n0"])
    assert time.monotonic() - began < 40


def set_place(folder: Path, **values: Any) -> None:
    place = {"addresses": ["127.0.0.1"], "hub_port": 9, "store_port": 9, "token": "x", "node": "n0"}
    (folder / FILE).write_text(json.dumps(place | values))


def as_rank_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLMO_ATTEMPT_DIR", str(folder))
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)


def test_an_address_that_cannot_be_reached_names_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank_1(tmp_path, monkeypatch)
    set_place(tmp_path)
    with pytest.raises(
        RendezvousError, match=r"rank 1 on n1 cannot reach rank 0 on n0, port 9 \(127.0.0.1: .*refused\)"
    ) as caught:
        meet(1, 2, FACTS, BRIEF)
    assert "Set OLMO_RENDEZVOUS_INTERFACE to the network interface that the nodes share" in str(caught.value)


def test_another_program_at_that_address_is_not_taken_for_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank_1(tmp_path, monkeypatch)
    monkeypatch.setattr(rendezvous, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        set_place(tmp_path, hub_port=other.getsockname()[1])
        with pytest.raises(RendezvousError, match="no answer in 0.5 s"):
            meet(1, 2, FACTS, BRIEF)


def test_ranks_of_srun_without_a_folder_are_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLMO_ATTEMPT_DIR", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="OLMO_ATTEMPT_DIR is not set.*start with `olmo launch`, or set it to an empty folder"):
        meet(0, 2, FACTS, BRIEF)


def test_an_interface_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLMO_RENDEZVOUS_INTERFACE", "ib7")
    with pytest.raises(
        ConfigError, match="OLMO_RENDEZVOUS_INTERFACE=ib7: node .* has no such interface with an address; it has: .*lo"
    ):
        own_addresses()
    monkeypatch.setenv("OLMO_RENDEZVOUS_INTERFACE", "lo")
    assert own_addresses() == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("a1,b[2-3]", ["a1", "b2", "b3"]),
        ("gpu[08-10,12]-x,z", ["gpu08-x", "gpu09-x", "gpu10-x", "gpu12-x", "z"]),
        ("r[1-2]c[1-2]", []),
        ("", []),
    ],
)
def test_slurms_lists_of_nodes_are_understood(text: str, names: list[str]) -> None:
    assert expand(text) == names
