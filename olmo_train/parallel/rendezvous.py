"""How ranks find each other: rank 0 opens a hub and a store on free ports and says where, in the attempt's folder.

No port is agreed before, so none can be taken. Under torchrun, whose agent has a store already, the place is said in that store.
Clocks are compared here, for the record: nothing depends on them.
"""

import fcntl
import json
import os
import secrets
import socket
import struct
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from olmo_train.attempt import attempt_folder, first_failure, node_name, read_ends
from olmo_train.config.faults import FaultsConfig
from olmo_train.errors import ConfigError, PeerError, RendezvousError
from olmo_train.files import write_atomic
from olmo_train.parallel.agreement import differences
from olmo_train.parallel.hub import Hub
from olmo_train.parallel.wire import Wire

INTERFACE = "OLMO_RENDEZVOUS_INTERFACE"
"""Environment variable: the network interface by which ranks reach rank 0, if the first address is not the best."""
FILE = "rendezvous.json"
MOST_WAIT_S = 600.0
"""For ranks that do not come; less where faults.hang_at_start_s is less."""
LATE_S = 30.0
"""After its own limit, for a rank to hear from rank 0, whose limit it is and who tells which ranks are missing."""
CLOCK_WARNING_S = 2.0
CONNECT_S = 5.0
STORE_S = 300.0
PINGS = 3


@dataclass
class Meeting:
    """All ranks have met, and run the same."""

    rank: int
    n_ranks: int
    wire: Wire
    """To the hub."""
    main_node: str
    """Where rank 0 is."""
    probe: socket.socket
    """Listens and never accepts: others ask this node's kernel whether the process is there."""
    store: dist.Store
    """For the process group."""
    hub: Hub | None = None
    """On rank 0."""
    clock_offset_s: float = 0.0
    """This node's clock minus rank 0's."""


@dataclass
class _Place:
    """Where rank 0 listens."""

    addresses: list[str]
    hub_port: int
    store_port: int
    token: str
    node: str


def meet(rank: int, n_ranks: int, facts: dict[str, Any], faults: FaultsConfig) -> Meeting:
    """Wait for all ranks and return once they have met and run the same code and config.

    Raises:
        RendezvousError: ranks did not come, or could not be reached.
        ConfigError: they run different code, config or versions.
    """
    deadline = time.monotonic() + min(faults.hang_at_start_s, MOST_WAIT_S)
    folder = attempt_folder()
    folder_of_place = folder if "MASTER_ADDR" not in os.environ else None
    if folder_of_place is None and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "OLMO_ATTEMPT_DIR is not set, and ranks that srun starts find each other by a file there: start with `olmo launch`, "
            "or set it to an empty folder that all ranks share"
        )
    store = None if folder_of_place is not None else _torchrun_store()
    hub = None
    if rank == 0:
        hub = Hub(n_ranks, faults, secrets.token_hex(8), differences)
        own = None if store is not None else _tcp_store("127.0.0.1", 0, holds=True)
        place = _Place(own_addresses(), hub.port, own.port if own is not None else 0, hub.token, node_name())
        _publish(place, folder_of_place, store)
        store = store or own
    elif folder_of_place is not None:
        place = _find_place(folder_of_place, deadline)
    else:
        place = _place_by_store(store, deadline)
    wire, address = _reach(place, rank, min(deadline, time.monotonic() + faults.silent_s))
    if store is None:
        store = _tcp_store(address, place.store_port, holds=False)
    offset = _clock_offset(wire, max(30.0, faults.silent_s))
    probe = socket.create_server((wire.own_address, 0))
    meeting = Meeting(rank, n_ranks, wire, place.node, probe, dist.PrefixStore("ranks", store), hub, offset)
    hello = {"token": place.token, "rank": rank, "node": node_name(), "probe": probe.getsockname()[:2], "facts": facts}
    wire.send({"hello": {**hello, "clock_offset_s": offset}})
    _wait_for_all(meeting, folder, deadline)
    return meeting


# ---- where rank 0 is -------------------------------------------------------------------------------------------------------


def _publish(place: _Place, folder: Path | None, store: dist.Store | None) -> None:
    text = json.dumps(asdict(place))
    if folder is not None:
        write_atomic(folder / FILE, text.encode())
    else:
        assert store is not None
        store.set("place", text)


def _tcp_store(address: str, port: int, holds: bool) -> dist.TCPStore:
    return dist.TCPStore(address, port, is_master=holds, timeout=timedelta(seconds=STORE_S), wait_for_workers=False)


def _torchrun_store() -> dist.Store:
    """A client of the store at MASTER_ADDR, which torchrun's agent holds; without an agent, rank 0 does."""
    holds = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = _tcp_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), holds)
    return dist.PrefixStore(f"olmo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _place_by_store(store: dist.Store | None, deadline: float) -> _Place:
    assert store is not None
    store.set_timeout(timedelta(seconds=max(1.0, deadline - time.monotonic())))
    try:
        return _Place(**json.loads(store.get("place")))
    except dist.DistStoreError as error:
        raise RendezvousError(f"rank 0 did not come: {os.environ['MASTER_ADDR']} does not know its place; see its log") from error
    finally:
        store.set_timeout(timedelta(seconds=STORE_S))


def _find_place(folder: Path, deadline: float) -> _Place:
    path = folder / FILE
    while FILE not in os.listdir(folder):  # a network file system looks anew, where it might remember that the file was not there
        _raise_if_one_failed(folder)
        if time.monotonic() > deadline:
            raise RendezvousError(
                f"rank 0 did not come: it wrote no {path}. Its log says why, if it started; all ranks must see the same folder",
                expand(os.environ.get("SLURM_STEP_NODELIST", ""))[:1],
            )
        time.sleep(0.1)
    return _Place(**json.loads(path.read_text()))


def own_addresses() -> list[str]:
    """IPv4 addresses of this node by which others may reach it, the likeliest first; one alone if an interface is named.

    Raises:
        ConfigError: the interface is not there.
    """
    names = [name for _, name in socket.if_nameindex()]
    wanted = os.environ.get(INTERFACE)
    if wanted:
        address = _address_of(wanted) if wanted in names else None
        if address is None:
            raise ConfigError(
                f"{INTERFACE}={wanted}: node {node_name()} has no such interface with an address; it has: {', '.join(names)}"
            )
        return [address]
    found = [address for name in names if (address := _address_of(name))]
    try:
        named = socket.gethostbyname(node_name())
    except OSError:
        named = ""
    first = [named] if named else []
    return list(dict.fromkeys([*first, *[a for a in found if not a.startswith("127.")], *found]))


def _address_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, 0x8915, struct.pack("256s", interface[:15].encode()))  # SIOCGIFADDR
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


# ---- reaching it -----------------------------------------------------------------------------------------------------------


def _reach(place: _Place, rank: int, until: float) -> tuple[Wire, str]:
    """Connect to the hub by the first address where it answers with the right token; a silent one is asked until `until`."""
    failures, is_there, tries = [], False, 0
    while tries < 3 or (is_there and time.monotonic() < until):
        tries += 1
        for address in ["127.0.0.1"] if rank == 0 else place.addresses:
            try:
                wire = Wire(address, place.hub_port, CONNECT_S)
            except OSError as error:
                failures.append(f"{address}: {error}")
                continue
            try:
                wire.send({"ping": place.token})
                if wire.receive(CONNECT_S).get("token") == place.token:
                    return wire, address
                failures.append(f"{address}: another program answers")
            except (OSError, ValueError, AttributeError) as error:
                is_there |= isinstance(error, OSError) and not wire.is_closed  # silent, as a stopped process is for a while
                failures.append(f"{address}: {error}")
            wire.close()
    told = "; ".join(dict.fromkeys(failures))
    raise RendezvousError(
        f"rank {rank} on {node_name()} cannot reach rank 0 on {place.node}, port {place.hub_port} ({told}). "
        f"Set {INTERFACE} to the network interface that the nodes share, or open the ports between them"
    )


def _clock_offset(wire: Wire, wait_s: float) -> float:
    """This node's clock minus rank 0's, by the quickest of some pings."""
    best = (float("inf"), 0.0)
    for i in range(PINGS):
        began = time.time()
        wire.send({"ping": i})
        theirs = float(wire.receive(wait_s)["time"])
        ended = time.time()
        best = min(best, (ended - began, (began + ended) / 2 - theirs))
    return best[1]


def _wait_for_all(meeting: Meeting, folder: Path | None, deadline: float) -> None:
    """Until the hub says that all have come and run the same."""
    told = time.monotonic()
    while True:
        message = meeting.wire.poll(0.5)
        if message is None:
            _wait_on(meeting, folder, deadline)
            if meeting.hub is not None and time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"waiting for ranks: {_missing(meeting.hub, meeting.n_ranks)[0]}", flush=True)
        elif "go" in message:
            return
        elif "refuse" in message:
            raise ConfigError(message["refuse"])
        elif "stranger" in message:
            raise RendezvousError(f"rank {meeting.rank} came twice: is another start using this attempt's folder?")
        elif "end" in message:
            raise PeerError(message["end"]["message"])


def _wait_on(meeting: Meeting, folder: Path | None, deadline: float) -> None:
    if folder is not None:
        _raise_if_one_failed(folder)
    if meeting.hub is not None and time.monotonic() > deadline:
        told, nodes = _missing(meeting.hub, meeting.n_ranks)
        raise RendezvousError(f"ranks did not come in time: {told}; see their logs", nodes)
    if time.monotonic() > deadline + LATE_S:
        raise RendezvousError(f"rank 0 on {meeting.main_node} has fallen silent before all ranks had met", [meeting.main_node])
    if meeting.wire.is_closed:
        raise PeerError(f"rank 0 on {meeting.main_node} ended while ranks were still coming")


def _raise_if_one_failed(folder: Path) -> None:
    end = first_failure(read_ends(folder))
    if end is not None:
        raise PeerError(f"rank {end.rank} on {end.node} ended before all ranks had met: {end.message}")


def _missing(hub: Hub, n_ranks: int) -> tuple[str, list[str]]:
    """Who has not come, in words, and the nodes of which nobody has."""
    came = hub.arrived()
    missing = [rank for rank in range(n_ranks) if rank not in came]
    nodes = _nodes_of(n_ranks)
    names = [f"rank {rank}" + (f" on {nodes[rank]}" if nodes else "") for rank in missing[:8]]
    absent = sorted({nodes[rank] for rank in missing} - set(came.values())) if nodes else []
    return f"{len(missing)} of {n_ranks} missing: {', '.join(names)}{', ...' if len(missing) > 8 else ''}", absent


def _nodes_of(n_ranks: int) -> list[str]:
    """The node of each rank as srun lays them out in blocks; empty where it is not known."""
    nodes = expand(os.environ.get("SLURM_STEP_NODELIST", ""))
    per_node = n_ranks // len(nodes) if nodes and n_ranks % len(nodes) == 0 else 0
    return [nodes[rank // per_node] for rank in range(n_ranks)] if per_node else []


def expand(nodelist: str) -> list[str]:
    """`a[1,3-4],b` -> a1 a3 a4 b; empty for a form that is not known."""
    names: list[str] = []
    rest = nodelist
    while rest:
        head, bracket, _ = rest.partition("[")
        first, comma, after = rest.partition(",")
        if not bracket or (comma and len(first) < len(head)):
            names.append(first)
            rest = after
            continue
        inside, _, tail = rest[len(head) + 1 :].partition("]")
        suffix, _, rest = tail.partition(",")
        if "[" in suffix:
            return []
        for piece in inside.split(","):
            low, _, high = piece.partition("-")
            names += [f"{head}{number:0{len(low)}d}{suffix}" for number in range(int(low), int(high or low) + 1)]
    return names
