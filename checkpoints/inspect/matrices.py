"""The matrices that parameters stack (q, k, v; gate and up; experts), by name, kind and layer; and the kinds of a summary."""

import re
from dataclasses import dataclass

from olmo_train.config.model import ModelConfig
from olmo_train.model.shapes import stacked_rows

# Name after `blocks.{i}.` -> kind of each matrix that the parameter stacks.
_KINDS: dict[str, tuple[str, ...]] = {
    "embedding.weight": ("embedding",),
    "lm_head.weight": ("lm_head",),
    "attention.w_qkv.weight": ("attention.q", "attention.k", "attention.v"),
    "attention.w_out.weight": ("attention.out",),
    "feed_forward.w_in.weight": ("feed_forward.gate", "feed_forward.up"),
    "feed_forward.w_out.weight": ("feed_forward.out",),
    "moe.router.weight": ("router",),
    "moe.router.bias": ("router.bias",),
    "moe.w_in": ("experts.gate", "experts.up"),
    "moe.w_out": ("experts.out",),
    "moe.shared.w_in.weight": ("shared.gate", "shared.up"),
    "moe.shared.w_out.weight": ("shared.out",),
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Matrix:
    """One matrix of a parameter, or a vector; `rows` and `expert` say where in the parameter's row sums it stands."""

    name: str
    """`blocks.0.moe.w_in[3].gate`; the parameter's own name where it is all of it."""
    param: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    rows: tuple[int, int] | None
    """Along the last dim but one; None: a vector."""
    expert: int | None
    """Along the first dim of three."""

    def slices(self) -> tuple[int | slice, ...]:
        """Into an array with an entry per row of the parameter."""
        rows: tuple[slice, ...] = () if self.rows is None else (slice(*self.rows),)
        return rows if self.expert is None else (self.expert, *rows)


def layer_of(name: str) -> int | None:
    """The block a parameter (or `moment/parameter`) belongs to."""
    match = _BLOCK.search(name)
    return int(match[1]) if match else None


def matrices_of(name: str, shape: tuple[int, ...], model: ModelConfig | None) -> list[Matrix]:
    """The matrices of a parameter, or of a moment of it, in order. `model=None`: do not cut rows (two models cut differently)."""
    moment, _, param = name.rpartition("/")
    match = _BLOCK.fullmatch(param)
    own = match[2] if match else param
    kinds = _KINDS.get(own, ("norm",) if own.endswith("norm.weight") else (own,))
    prefix = f"{moment}/" if moment else ""
    cuts = stacked_rows(param, shape, model) if model is not None else (shape[-2:-1] if len(shape) > 1 else ())
    if len(cuts) != len(kinds):
        kinds = ("+".join(kinds),) * max(len(cuts), 1)
    out = []
    for expert in range(shape[0]) if len(shape) == 3 else (None,):
        label = name if expert is None else f"{name}[{expert}]"
        if not cuts:
            out.append(Matrix(label, name, prefix + kinds[0], layer_of(name), shape, None, expert))
        at = 0
        for kind, rows in zip(kinds, cuts, strict=bool(cuts)):
            part = f".{kind.rpartition('.')[2]}" if len(cuts) > 1 else ""
            out.append(Matrix(label + part, name, prefix + kind, layer_of(name), (rows, shape[-1]), (at, at + rows), expert))
            at += rows
    return out
