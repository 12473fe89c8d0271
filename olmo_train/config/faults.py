"""What a run does about hardware and ranks that fail, and faults to rehearse on purpose."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING


class DrillKind(StrEnum):
    """Faults that a drill causes."""

    KILL = "kill"
    """SIGKILL, as the kernel's out-of-memory killer sends it."""
    STOP = "stop"
    """SIGSTOP: the process is there and does nothing, not even in other threads."""
    HANG = "hang"
    """The training thread waits for ever; other threads live."""
    EXCEPTION = "exception"
    """An exception in the training thread."""
    NAN = "nan_loss"  # YAML reads `nan` as a number
    """The loss of this rank's first micro-batch becomes NaN."""
    SPIKE = "spike"
    """The loss of this rank's first micro-batch is multiplied by 1000."""
    FLIP = "flip"
    """One bit of one weight on this rank changes, as silent corruption does."""
    SLOW = "slow"
    """Each step from here on takes `seconds` longer on this rank."""
    SICK = "sick"
    """This rank's node fails the health check at the start; `step` is not looked at."""


@dataclass
class DrillConfig:
    """One fault on purpose: to see that a cluster, its limits and its people get over it before a real one comes."""

    kind: DrillKind = MISSING
    rank: int | None = 0
    """Global rank that fails; None: by `node`."""
    node: str | None = None
    """Every rank of this node fails; None: by `rank`."""
    step: int = 1
    """At the beginning of this step, the step being taken."""
    seconds: float = 1.0
    """For slow."""
    once: bool = True
    """Once in the life of the run, whatever restarts; False: at every start, as a broken machine would."""


@dataclass
class FaultsConfig:
    """Watching, checking, rehearsing. Times are seconds on one clock each; no two machines' clocks are compared."""

    hang_s: float = 300.0
    """Without progress of a rank in the middle of training: stacks of all ranks are written and the run ends."""
    hang_at_start_s: float = 1800.0
    """The same until the first step of a start is done, during evaluation and while a save is waited for."""
    silent_s: float = 60.0
    """Without a sign of life of a rank: as above. So soon a lost node is seen, and in training a stopped process; one that is
    there but silent while it starts, evaluates or saves is given `hang_s`."""
    health_check: bool = True
    """Before training, matrix products and an all-reduce with known answers on every device."""
    straggler_frac: float = 0.2
    """A rank whose own work in an interval takes this much longer than the median rank's is named in the metrics."""
    replica_check_every: int | None = None
    """Steps between comparisons of all replicas' weights and moments, bit by bit, also before each save (HSDP); None: never."""
    replay_check_every: int | None = None
    """Steps between a micro-step taken twice, whose loss and gradients must agree; None: never."""
    replay_tolerance: float = 0.0
    """Allowed difference of the two, as a fraction of the norm; 0: bit by bit, which kernels with atomic sums do not reach."""
    drill: list[DrillConfig] = field(default_factory=list)
    """Faults on purpose. Empty: none."""
