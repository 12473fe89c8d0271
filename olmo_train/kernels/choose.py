"""Which backend of each kernel a run uses: what was asked for, or the best one that works here. Never a silent fallback."""

from dataclasses import asdict, dataclass

import torch

from olmo_train.kernels import attention, cross_entropy, moe_mlp


@dataclass(frozen=True)
class Kernels:
    """Names of the backends in use; goes into the log and into provenance."""

    attention: str
    moe_mlp: str
    cross_entropy: str

    def describe(self) -> str:
        """One line for the log."""
        return ", ".join(f"{name}={backend}" for name, backend in asdict(self).items())


REFERENCE = Kernels("reference", "reference", "reference")
_BACKENDS = {"attention": attention.BACKENDS, "moe_mlp": moe_mlp.BACKENDS, "cross_entropy": cross_entropy.BACKENDS}


def choose_kernels(wanted: dict[str, str], device: torch.device) -> Kernels:
    """Resolve `auto` for a device; `find_kernel_problems` must have found nothing."""
    best = {
        "attention": "sdpa",
        "moe_mlp": "loop" if device.type == "cpu" else "grouped_mm",
        "cross_entropy": "chunked",
    }
    return Kernels(**{name: best[name] if backend == "auto" else backend for name, backend in wanted.items()})


def find_kernel_problems(wanted: dict[str, str], widths: dict[str, int], itemsize: int) -> list[str]:
    """What stands against the backends asked for.

    `widths`: the matrix dims of the experts by dotted name; `itemsize`: bytes of a compute element.
    """
    problems = []
    for name, backend in wanted.items():
        if backend not in ("auto", *_BACKENDS[name]):
            problems.append(f"kernels.{name}={backend} is not one of auto, {', '.join(_BACKENDS[name])}")
    if wanted["moe_mlp"] == "grouped_mm":
        if not hasattr(torch.nn.functional, "grouped_mm"):
            problems.append(f"kernels.moe_mlp=grouped_mm needs torch 2.10 or newer, this is {torch.__version__}; use auto")
        for width, value in widths.items():
            if value * itemsize % 16:
                problems.append(
                    f"kernels.moe_mlp=grouped_mm: {width}={value} * {itemsize} bytes is no multiple of 16; change it or use loop"
                )
    return problems
