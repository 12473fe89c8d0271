"""Which backend of each kernel a run uses: what was asked for, or the best one that works here. Never a silent fallback.

`auto` goes through a kernel's backends from the fastest, passes over those that cannot run here, and on a GPU lets each of the
rest prove itself against the reference first (kernels/self_check.py). What was passed over, and why, is logged and recorded.
"""

from dataclasses import dataclass, field

from olmo_train.kernels import attention, cross_entropy, moe_mlp
from olmo_train.kernels.needs import Needs
from olmo_train.kernels.self_check import find_fault


@dataclass(frozen=True)
class Kernels:
    """Names of the backends in use; goes into the log and into provenance."""

    attention: str
    moe_mlp: str
    cross_entropy: str
    passed_over: tuple[str, ...] = field(default=(), compare=False)
    """Better backends that `auto` did not take, each with the reason."""

    def describe(self) -> str:
        """One line for the log."""
        return ", ".join(f"{name}={backend}" for name, backend in self.backends().items())

    def backends(self) -> dict[str, str]:
        """The backend of each kernel."""
        return {name: getattr(self, name) for name in _MODULES}


REFERENCE = Kernels("reference", "reference", "reference")
_MODULES = {"attention": attention, "moe_mlp": moe_mlp, "cross_entropy": cross_entropy}


def choose_kernels(wanted: dict[str, str], needs: Needs) -> Kernels:
    """Resolve `auto` for a run; `find_kernel_problems` must have found nothing.

    On a GPU this compiles and runs kernels, on this rank only: let one rank choose for all.
    """
    chosen, passed_over = {}, []
    for name, backend in wanted.items():
        if backend == "auto":
            backend, reasons = _best(name, needs)
            passed_over += reasons
        chosen[name] = backend
    return Kernels(**chosen, passed_over=tuple(passed_over))


def _best(name: str, needs: Needs) -> tuple[str, list[str]]:
    reasons: list[str] = []
    order = _MODULES[name].auto_order(needs)
    for backend in order:
        reason = _MODULES[name].why_not(backend, needs)
        if reason is None and needs.device.type == "cuda":
            reason = find_fault(name, backend, needs)
        if reason is None:
            return backend, reasons
        reasons.append(reason)
    raise AssertionError(f"no backend of {name} works here: {'; '.join(reasons)}")


def find_kernel_problems(wanted: dict[str, str], needs: Needs) -> list[str]:
    """What stands against the backends asked for by name."""
    problems = []
    for name, backend in wanted.items():
        module = _MODULES[name]
        if backend == "auto":
            continue
        if backend not in module.BACKENDS:
            problems.append(f"kernels.{name}={backend} is not one of auto, {', '.join(module.BACKENDS)}")
        elif (reason := module.why_not(backend, needs)) is not None:
            problems.append(reason)
    return problems
