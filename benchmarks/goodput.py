"""How much of a long run's time trains: a simulation of failures, detection, restarts and saves. No torch, no GPU.

    python -m benchmarks.goodput [--gpus 1024 16384] [--interval-s 600] [--spares 1] [--queue-wait-s 0 1800] [--restart-s 120] ...

Goodput is the time whose steps count in the end, over all the time that nodes were held or waited for. Failures come at the
rate of Llama 3's table of interruptions, each with a cause from it; how a cause shows itself is this file's reading, and every
other number is a flag. What is assumed is printed first. Nothing here is a measurement of 1,024 GPUs.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

DAY = 86400.0
CRASH, HANG, LOST = "crash", "hang", "lost"


@dataclass(frozen=True)
class Cause:
    """Why a job is interrupted."""

    name: str
    count: int
    """In 54 days on 16,384 GPUs. Source: The Llama 3 Herd of Models, arXiv:2407.21783, table 5."""
    seen_as: str
    """crash: a process ends. hang: all live and nothing moves. lost: a node is silent. Assumed."""
    node_is_bad: bool
    """The node cannot be used again before it is repaired. Assumed."""


CAUSES = (
    Cause("faulty GPU", 148, CRASH, True),
    Cause("GPU HBM3 memory", 72, CRASH, True),
    Cause("software bug", 54, CRASH, False),
    Cause("network switch or cable", 35, HANG, True),
    Cause("host maintenance, unplanned", 32, LOST, True),
    Cause("GPU SRAM memory", 19, CRASH, True),
    Cause("GPU system processor", 17, CRASH, True),
    Cause("NIC", 7, HANG, True),
    Cause("NCCL watchdog timeouts", 7, HANG, False),
    Cause("silent data corruption", 6, CRASH, True),
    Cause("GPU thermal interface and sensor", 6, CRASH, True),
    Cause("SSD", 3, CRASH, True),
    Cause("power supply", 3, LOST, True),
    Cause("server chassis", 2, LOST, True),
    Cause("IO expansion board", 2, LOST, True),
    Cause("dependency", 2, CRASH, False),
    Cause("CPU", 2, LOST, True),
    Cause("system memory", 2, LOST, True),
)
LLAMA_DAYS, LLAMA_GPUS = 54.0, 16384


@dataclass(frozen=True)
class Policy:
    """What follows a failure; seconds."""

    name: str
    detect_s: dict[str, float]
    """From the failure to the end of the job's ranks, by how it is seen."""
    restart_s: float
    """From the launch of the ranks to the first step: imports, checks, connecting, reading the checkpoint, warming up."""
    requeue_s: float = 0.0
    """From the end of a job to its next start when nodes are free: Slurm's own delay."""
    queue_wait_s: float = 0.0
    """Mean wait for nodes beyond that; exponential."""
    in_place: bool = False
    """Ranks start again inside the allocation as long as its nodes suffice; else every failure goes through the queue."""
    spares: int = 0
    """Nodes allocated beyond those that train; full again after every requeue."""
    response_s: float = 0.0
    """Mean time until a person has seen it and typed the command; exponential. 0: nobody is needed."""


@dataclass(frozen=True)
class Saving:
    """How often a step is saved and what it costs; seconds."""

    interval_s: float
    """Of training, between saves."""
    stall_s: float
    """For which training waits at each save."""
    write_s: float = 0.0
    """From the end of the stall until the save counts; training goes on meanwhile."""


@dataclass
class Outcome:
    """Seconds of all that passed, by what they were spent on; `useful` is the rest of a good run."""

    useful: float = 0.0
    stall: float = 0.0
    repeated: float = 0.0
    detection: float = 0.0
    restart: float = 0.0
    queue: float = 0.0
    response: float = 0.0
    failures: int = 0
    requeues: int = 0

    @property
    def wall(self) -> float:
        """All of it."""
        return self.useful + self.stall + self.repeated + self.detection + self.restart + self.queue + self.response

    @property
    def goodput(self) -> float:
        """Fraction of the time that counts."""
        return self.useful / self.wall

    def lost(self) -> dict[str, float]:
        """Fractions of the time that do not count, by reason."""
        names = ("stall", "repeated", "detection", "restart", "queue", "response")
        return {name: getattr(self, name) / self.wall for name in names}


@dataclass
class _Clock:
    """The state between events: spares and time left in the allocation."""

    spares: int
    left_s: float
    outcome: Outcome = field(default_factory=Outcome)


def mtbf_s(gpus: int, factor: float = 1.0) -> float:
    """Mean time between failures of a job of `gpus`, in seconds, at `factor` times Llama 3's rate per GPU."""
    return LLAMA_DAYS * DAY * LLAMA_GPUS / (sum(cause.count for cause in CAUSES) * gpus * factor)


def young(stall_s: float, mtbf: float) -> float:
    """Best interval to first order, in seconds. Source: Young, CACM 17(9), 1974."""
    return math.sqrt(2 * stall_s * mtbf)


def daly(stall_s: float, mtbf: float) -> float:
    """Best interval to higher order, in seconds. Source: Daly, FGCS 22, 2006, equation 37."""
    if stall_s >= 2 * mtbf:
        return mtbf
    x = stall_s / (2 * mtbf)
    return math.sqrt(2 * stall_s * mtbf) * (1 + math.sqrt(x) / 3 + x / 9) - stall_s


def daly_goodput(interval_s: float, stall_s: float, restart_s: float, mtbf: float) -> float:
    """Expected goodput where failures are seen at once and saves count at once. Source: Daly 2006, equation 20."""
    return interval_s / (mtbf * math.exp(restart_s / mtbf) * math.expm1((interval_s + stall_s) / mtbf))


def simulate(policy: Policy, saving: Saving, mtbf: float, failures: int, limit_s: float = math.inf, seed: int = 0) -> Outcome:
    """Play a run that never ends until it has failed so often. `limit_s`: of one allocation; the run saves and requeues before.

    Failures are a Poisson process while ranks are up, starting included. A save that was not finished when one came does not
    count.
    """
    if saving.interval_s < saving.write_s:
        raise ValueError(f"interval_s={saving.interval_s} must be at least write_s={saving.write_s}: one save at a time")
    rng = random.Random(seed)
    shares = list(accumulate(cause.count for cause in CAUSES))
    clock = _Clock(policy.spares, limit_s)
    while clock.outcome.failures < failures:
        up_s = rng.expovariate(1 / mtbf)
        # Drawn whether used or not: two policies, or two intervals, then meet the same failures.
        (cause,), wait, answer = rng.choices(CAUSES, cum_weights=shares), rng.expovariate(1), rng.expovariate(1)
        if clock.left_s < up_s:
            _leave_in_time(clock, policy, saving, limit_s, wait)
        else:
            _fail(clock, policy, saving, up_s, cause)
            clock.outcome.response += answer * policy.response_s
            if not policy.in_place or (cause.node_is_bad and clock.spares == 0):
                _requeue(clock, policy, limit_s, wait)
            elif cause.node_is_bad:
                clock.spares -= 1
    return clock.outcome


def _fail(clock: _Clock, policy: Policy, saving: Saving, up_s: float, cause: Cause) -> None:
    """Ranks ran for `up_s`, then something broke."""
    out, trained_s = clock.outcome, up_s - policy.restart_s
    out.failures += 1
    out.restart += min(up_s, policy.restart_s)
    if trained_s > 0:
        cycle = saving.interval_s + saving.stall_s
        saves = max(int((trained_s - saving.write_s) // cycle), 0)
        out.useful += saves * saving.interval_s
        out.stall += saves * saving.stall_s
        out.repeated += trained_s - saves * cycle
    out.detection += policy.detect_s[cause.seen_as]
    clock.left_s -= up_s + policy.detect_s[cause.seen_as]


def _leave_in_time(clock: _Clock, policy: Policy, saving: Saving, limit_s: float, wait: float) -> None:
    """The allocation ends: the last step is saved, and all that was trained counts."""
    out, up_s = clock.outcome, max(clock.left_s, 0.0)
    out.restart += min(up_s, policy.restart_s)
    last_s = min(saving.stall_s + saving.write_s, max(up_s - policy.restart_s, 0.0))
    trained_s = max(up_s - policy.restart_s - last_s, 0.0)
    saves = trained_s // (saving.interval_s + saving.stall_s)
    out.stall += saves * saving.stall_s + last_s
    out.useful += trained_s - saves * saving.stall_s
    _requeue(clock, policy, limit_s, wait)


def _requeue(clock: _Clock, policy: Policy, limit_s: float, wait: float) -> None:
    """The job ends and starts again, on as many nodes as at first."""
    clock.outcome.queue += policy.requeue_s + wait * policy.queue_wait_s
    clock.outcome.requeues += 1
    clock.spares, clock.left_s = policy.spares, limit_s


def best_interval(policy: Policy, saving: Saving, mtbf: float, failures: int, limit_s: float = math.inf) -> tuple[float, Outcome]:
    """The interval of the highest goodput among steps of a tenth around Daly's, but no shorter than a save; and what it gives."""
    shortest = max(saving.write_s, 1.0)
    middle = max(daly(saving.stall_s, mtbf), shortest)
    tried = sorted({max(middle * 1.1**i, shortest) for i in range(-8, 9)})
    results = [(tau, simulate(policy, replace(saving, interval_s=tau), mtbf, failures, limit_s)) for tau in tried]
    return max(results, key=lambda result: result[1].goodput)


def policies(args: argparse.Namespace, queue_wait_s: float) -> list[Policy]:
    """The ways to go on that are compared."""
    wait = {"queue_wait_s": queue_wait_s, "requeue_s": args.requeue_s, "restart_s": args.restart_s}
    ours = {CRASH: args.crash_s, HANG: args.hang_s, LOST: args.silent_s}
    slurm = {CRASH: args.kill_wait_s, HANG: args.nccl_timeout_s, LOST: min(args.slurmd_timeout_s, args.nccl_timeout_s)}
    return [
        Policy(f"olmo launch, {args.spares} spare", ours, in_place=True, spares=args.spares, **wait),
        Policy("olmo launch, no spare", ours, in_place=True, **wait),
        Policy("script that requeues itself", slurm, **wait),
        Policy("started again by hand", slurm, response_s=args.hand_s, **wait),
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags; the help says where each default is from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def number(name: str, default: float, told: str) -> None:
        parser.add_argument(f"--{name}", type=float, default=default, metavar="X", help=f"{told} (default {default:g})")

    parser.add_argument("--gpus", type=int, nargs="+", default=[1024, 16384], help="sizes of the job (default 1024 16384)")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--spares", type=int, default=1, help="spare nodes in the allocation (default 1)")
    parser.add_argument(
        "--queue-wait-s", type=float, nargs="+", default=[0.0, 1800.0], help="mean wait for nodes; assumed (default 0 1800)"
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON per row instead of tables")
    number("rate-factor", 1.0, "failures per GPU, as a multiple of Llama 3's; new clusters have more")
    number("interval-s", 600, "training between saves")
    number("stall-s", 1.0, "training waits at a save; benchmarks/saving.py measures it")
    number("write-s", 60, "from then until the save counts; benchmarks/saving.py measures it; assumed")
    number("restart-s", 120, "from launch to the first step; the job log of a drill shows it; assumed")
    number("crash-s", 5, "olmo: until all ranks have ended after one did; assumed")
    number("hang-s", 300, "olmo: faults.hang_s, its default")
    number("silent-s", 60, "olmo: faults.silent_s, its default")
    number("kill-wait-s", 30, "script: Slurm's KillWait after --kill-on-bad-exit, its default")
    number("nccl-timeout-s", 600, "script: NCCL's collective timeout in torch, its default")
    number("slurmd-timeout-s", 300, "script: SlurmdTimeout, its default")
    number("requeue-s", 121, "Slurm starts a requeued job no sooner: munge's cred_expire of 120 s, its default, and one")
    number("hand-s", 3600, "by hand: mean until somebody has seen it, day and night; assumed")
    number("limit-h", math.inf, "hours of one allocation")
    parser.add_argument("--failures", type=int, default=4000, metavar="N", help="simulated in each cell (default 4000)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print what is assumed, then a table for each size of job and wait for the queue."""
    args = parse(argv)
    if not args.json:
        print("\n".join(assumptions(args)))
    for gpus in args.gpus:
        mtbf, saving = mtbf_s(gpus, args.rate_factor), Saving(args.interval_s, args.stall_s, args.write_s)
        if not args.json:
            print(
                f"\n{gpus:,} GPUs: a failure every {mtbf / 3600:.1f} h; best interval for a stall of {args.stall_s:g} s by"
                f" Young {young(args.stall_s, mtbf):,.0f} s, by Daly {daly(args.stall_s, mtbf):,.0f} s"
            )
        for wait in args.queue_wait_s:
            rows = [_row(policy, saving, mtbf, args) for policy in policies(args, wait)]
            for row in rows:
                row |= {"gpus": gpus, "mtbf_h": mtbf / 3600, "queue_wait_s": wait}
                row["per_allocated_gpu"] = row["goodput"] * gpus / (gpus + args.gpus_per_node * row["spares"])
            print("\n".join(map(json.dumps, rows) if args.json else _table(rows)))


def _row(policy: Policy, saving: Saving, mtbf: float, args: argparse.Namespace) -> dict[str, Any]:
    out = simulate(policy, saving, mtbf, args.failures, args.limit_h * 3600)
    interval, best = best_interval(policy, saving, mtbf, args.failures, args.limit_h * 3600)
    days = out.wall / DAY
    return {
        "policy": policy.name,
        "spares": policy.spares,
        "goodput": out.goodput,
        **out.lost(),
        "failures_per_day": out.failures / days,
        "requeues_per_day": out.requeues / days,
        "best_interval_s": interval,
        "best_goodput": best.goodput,
    }


def assumptions(args: argparse.Namespace) -> list[str]:
    """What the tables rest on."""
    seen = {way: sum(cause.count for cause in CAUSES if cause.seen_as == way) for way in (CRASH, HANG, LOST)}
    bad, total = sum(cause.count for cause in CAUSES if cause.node_is_bad), sum(seen.values())
    rate = total / LLAMA_DAYS / LLAMA_GPUS * 1000 * args.rate_factor
    return [
        (
            f"Failures: {rate:.3f} per 1,000 GPU-days, {args.rate_factor:g} times those of Llama 3 ({total} in "
            f"{LLAMA_DAYS:g} days on {LLAMA_GPUS:,} GPUs, arXiv:2407.21783, table 5)."
        ),
        (
            f"Its causes, as read here: {seen[CRASH] / total:.0%} crash, {seen[HANG] / total:.0%} hang, {seen[LOST] / total:.0%} "
            f"a silent node; after {bad / total:.0%} the node is bad."
        ),
        (
            f"olmo: seen after {args.crash_s:g}, {args.hang_s:g}, {args.silent_s:g} s; ranks start again in the allocation; a "
            "requeue when it has too few nodes."
        ),
        (
            f"script: seen after {args.kill_wait_s:g} (KillWait), {args.nccl_timeout_s:g} (NCCL), {args.slurmd_timeout_s:g} s "
            "(SlurmdTimeout); a requeue each time."
        ),
        f"by hand: as the script, and {args.hand_s:g} s on average until somebody acts.",
        (
            f"All: {args.restart_s:g} s from launch to the first step; a save every {args.interval_s:g} s stalls "
            f"{args.stall_s:g} s and counts {args.write_s:g} s later; a requeue takes {args.requeue_s:g} s and the queue."
        ),
        "Not in it: slow steps, evaluation, failures of file systems and of Slurm, going on with fewer nodes.",
    ]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = ("stall", "repeated", "detection", "restart", "queue", "response")
    head = " ".join([f"{'goodput':>8} {'per GPU':>8}", *(f"{name:>9}" for name in names), f"{'requeues':>10}  best interval"])
    out = ["", f"wait for nodes {rows[0]['queue_wait_s']:g} s".ljust(30) + head]
    for row in rows:
        cells = [f"{row['goodput']:>8.2%} {row['per_allocated_gpu']:>8.2%}", *(f"{row[name]:>9.2%}" for name in names)]
        cells += [f"{row['requeues_per_day']:>8.2f}/d", f" {row['best_interval_s']:,.0f} s: {row['best_goodput']:.2%}"]
        out.append(f"{row['policy']:<30}" + " ".join(cells))
    return out


if __name__ == "__main__":
    main()
