"""A real Slurm of four nodes on this machine, for tests: started, hurt and healed by launch/slurm_local.sh."""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/slurm_local.sh"
FOLDERS = "olmo-slurm-"
N_NODES = 4
DISK_MIB = 256
PATIENCE_S = 300.0
"""How long anything is given that takes seconds, or half a minute, on an idle machine."""


class ClusterError(AssertionError):
    """The cluster did not do what it was asked; carries what it said."""


@dataclass(frozen=True)
class Process:
    """A rank of a job."""

    pid: int
    rank: int
    node: str


class Cluster:
    """Four nodes named <letters>1 to <letters>4. `flat`: they share this machine's network; `netns`: each has its own."""

    def __init__(self, folder: Path, mode: str, port: int, prefix: str) -> None:
        self.folder, self.mode = folder, mode
        self.nodes = [f"{prefix}{i + 1}" for i in range(N_NODES)]
        shape = {"DIR": folder, "MODE": mode, "PORT": port, "PREFIX": prefix, "NODES": N_NODES}
        self.settings = {f"SLURM_LOCAL_{name}": str(value) for name, value in shape.items()}
        self.conf = folder / "etc/slurm.conf"
        self.disk = folder / "disk"
        """A small file system that all nodes see, where this machine lets us mount one; see `has_disk`."""

    @property
    def has_disk(self) -> bool:
        """Whether `disk` is a file system of its own, that may be filled."""
        return os.path.ismount(self.disk)

    # ---- asking --------------------------------------------------------------------------------------------------------

    def script(self, *words: str) -> str:
        """Run a subcommand of slurm_local.sh and return what it prints."""
        return self._run(["bash", str(SCRIPT), *words], os.environ | self.settings)

    def command(self, *words: str) -> list[str]:
        """A command line that runs `words` as a user of this cluster does, on its login node."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        if self.mode == "flat":
            return ["env", f"SLURM_CONF={self.conf}", *words]
        return ["env", f"SLURM_CONF={self.conf}", *settings, "bash", str(SCRIPT), "exec", *words]

    def client(self, *words: str) -> str:
        """Run a command as a user of this cluster and return its output."""
        return self._run(self.command(*words), dict(os.environ))

    def _run(self, words: list[str], environment: dict[str, str]) -> str:
        # A file and not a pipe: a daemon that inherited a pipe would keep it open for ever.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=PATIENCE_S
            )
            output.seek(0)
            text = output.read()
        if done.returncode != 0:
            raise ClusterError(f"{shlex.join(words)} ended with {done.returncode}:\n{text}")
        return text

    def submit(self, *words: str) -> str:
        """Submit by sbatch and return the job's id."""
        return self.client("sbatch", "--parsable", *words).strip().splitlines()[-1].split(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, by name; {} for a job that is forgotten."""
        try:
            text = self.client("scontrol", "show", "job", job_id, "--oneliner")
        except ClusterError:
            return {}
        return dict(re.findall(r"(\w[\w/:]*)=(\S*)", text))

    def state(self, job_id: str) -> str:
        """PENDING, RUNNING, COMPLETED ..."""
        return self.job(job_id).get("JobState", "")

    def nodes_of(self, job_id: str) -> list[str]:
        """Nodes that a job runs on, the one of its batch script first."""
        job = self.job(job_id)
        nodes = self.client("scontrol", "show", "hostnames", job["NodeList"]).split()
        return sorted(nodes, key=lambda node: (node != job.get("BatchHost"), node))

    def node_states(self) -> dict[str, str]:
        """By node, as `sinfo` writes it: idle, mixed, down* ..."""
        lines = self.client("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines if len(line.split()) == 2}

    def n_restarts(self, job_id: str) -> int:
        """How often Slurm has requeued a job."""
        return int(self.job(job_id).get("Restarts", 0))

    # ---- hurting -------------------------------------------------------------------------------------------------------

    def kill_node(self, node: str) -> None:
        """Power loss: daemon, steps and tasks are gone at once, and nobody hears of it."""
        self.script("kill-node", node)

    def start_node(self, node: str) -> None:
        """Power returns."""
        self.script("start-node", node)

    def hang_node(self, node: str) -> None:
        """Every process of a node stops, and nothing closes its connections."""
        self.script("hang-node", node)

    def resume_node(self, node: str) -> None:
        """What was stopped goes on, as if nothing had happened."""
        self.script("resume-node", node)

    def cut_node(self, node: str) -> None:
        """Pull a node's network cable; its processes live (netns mode only)."""
        self.script("cut-node", node)

    def heal_node(self, node: str) -> None:
        """Put the cable back."""
        self.script("heal-node", node)

    def preempt(self, n_nodes: int = N_NODES, seconds: int = 1) -> str:
        """Submit a job of the partition before which `main` gives way; returns its id."""
        return self.submit("-p", "high", f"--nodes={n_nodes}", "--exclusive", "-o", "/dev/null", f"--wrap=sleep {seconds}")

    # ---- the ends ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; returns when every node is idle."""
        self.disk.mkdir(exist_ok=True)
        if not self.has_disk:  # before any daemon: later mounts may not reach theirs
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.disk)], capture_output=True)
        self.script("start")

    def heal(self) -> None:
        """Make every node whole and idle again, with no job left."""
        self.client("scancel", "--user", str(os.getuid()))
        for node in self.nodes:
            if self.mode == "netns":
                self.heal_node(node)
            self.resume_node(node)
            self.start_node(node)
        wait_until(lambda: not self.client("squeue", "-h").strip(), "all jobs are gone")
        self.script("start")  # nothing but waiting, and taking drained nodes back
        wait_until(lambda: set(self.node_states().values()) == {"idle"}, "all nodes are idle")

    def purge(self) -> None:
        """Stop what was started, and delete its folder."""
        self.script("stop")
        _delete(self.folder)


@contextlib.contextmanager
def new_cluster(mode: str) -> Iterator[Cluster]:
    """A cluster of its own folder, ports and node names, which ends with the block: several may live on one machine."""
    _purge_orphans()
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS))
    (folder / "owner").write_text(str(os.getpid()))
    # Letters alone: Slurm takes digits at the end of a name for the number of the node.
    letters = "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz") for _ in range(5))
    cluster = Cluster(folder, mode, free_ports(N_NODES + 2), f"n{letters}")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.purge()


def _purge_orphans() -> None:
    """End the clusters of test runs that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        try:
            is_orphan = not Path(f"/proc/{int((folder / 'owner').read_text())}").exists()
        except (OSError, ValueError):
            continue
        if is_orphan:
            environment = os.environ | {"SLURM_LOCAL_DIR": str(folder)}
            subprocess.run(["bash", str(SCRIPT), "stop"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _delete(folder)


def _delete(folder: Path) -> None:
    if os.path.ismount(folder / "disk"):
        subprocess.run(["umount", "--lazy", str(folder / "disk")], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that nobody uses, below those that the kernel gives to clients."""
    for _ in range(1000):
        first = 18_000 + secrets.randbelow(12_000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("0.0.0.0", port))
            except OSError:
                continue
            return first
    raise ClusterError("no free ports between 18000 and 30000")


def find_missing() -> list[str]:
    """Programs of Slurm that are not installed; tests/install_slurm.sh installs them."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=path) is None]


def why_no_namespaces() -> str:
    """Why nodes cannot have networks of their own here; empty if they can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        return "no program `ip` (Debian: iproute2)"
    trial = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return "" if trial.returncode == 0 else f"no namespaces: {trial.stderr.strip()}"


def wait_until(
    is_so: Callable[[], object],
    what: str,
    timeout_s: float = PATIENCE_S,
    every_s: float = 0.2,
    story: Callable[[], str] = str,
) -> None:
    """Wait for a condition.

    Raises:
        ClusterError: it did not come true in time; told with `story()` as it is then.
    """
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {timeout_s:.0f} s until {what}; {story()}")
        time.sleep(every_s)


def rank_processes(run_dir: Path) -> list[Process]:
    """The living ranks of a run that a launcher started, in rank order."""
    found = [process for folder in Path("/proc").glob("[0-9]*") if (process := _rank(folder, run_dir)) is not None]
    return sorted(found, key=lambda process: (process.rank, process.pid))


def _rank(folder: Path, run_dir: Path) -> Process | None:
    try:
        words = (folder / "cmdline").read_text().split("\0")
        if not Path(words[0]).name.startswith("python") or "olmo_train.train" not in words:
            return None
        pairs = (entry.split("=", 1) for entry in (folder / "environ").read_text().split("\0") if "=" in entry)
        environment = dict(pairs)
        rank = environment.get("SLURM_PROCID", environment.get("RANK"))
        if rank is None or not environment.get("OLMO_ATTEMPT_DIR", "").startswith(f"{run_dir}/"):
            return None
        return Process(int(folder.name), int(rank), environment.get("SLURMD_NODENAME", ""))
    except (OSError, UnicodeDecodeError, IndexError):  # it ended meanwhile, or is not ours
        return None
