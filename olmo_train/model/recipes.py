"""Which number formats of weights, gradients and moments a card has room for, from the config alone; no torch."""

from dataclasses import dataclass, replace

from olmo_train.config.dtypes import FloatType, MomentType
from olmo_train.config.optim import OptimConfig
from olmo_train.config.train import Recompute, TrainConfig
from olmo_train.model.memory import RESERVE, largest_micro_batch, predict

MARGIN_FRAC = 0.04
"""Of the predicted peak, left free where a recipe is recommended: predictions are held to a tenth."""
F32, BF16 = FloatType.FLOAT32, FloatType.BFLOAT16


@dataclass(frozen=True)
class Recipe:
    """Number formats of the optimizer, and what is recomputed."""

    weight: FloatType
    grad: FloatType
    moment: MomentType
    recompute: Recompute = Recompute.NONE

    def apply(self, run: TrainConfig) -> TrainConfig:
        """The run in these formats."""
        formats = {"weight_dtype": self.weight, "grad_dtype": self.grad, "moment_dtype": self.moment}
        optim = OptimConfig(**{**vars(run.optim), **formats})
        return replace(run, optim=optim, parallel=replace(run.parallel, recompute=self.recompute))

    def words(self) -> str:
        """As overrides."""
        formats = f"optim.weight_dtype={self.weight} optim.grad_dtype={self.grad} optim.moment_dtype={self.moment}"
        return formats if self.recompute == Recompute.NONE else f"{formats} parallel.recompute={self.recompute}"


FORMATS = (
    Recipe(F32, F32, MomentType.FLOAT32),
    Recipe(F32, F32, MomentType.BFLOAT16),
    Recipe(BF16, F32, MomentType.BFLOAT16),
    Recipe(BF16, F32, MomentType.INT8),
    Recipe(BF16, BF16, MomentType.BFLOAT16),
    Recipe(BF16, BF16, MomentType.INT8),
)
"""16, 12, 10, 8, 8 and 6 bytes per parameter, and 2 more of the first two on one GPU (the copy that computes); the further down,
the further from float32 throughout. Moments of 8 bits before sums in bfloat16: in docs/optim.md's comparison the former cost less
than another seed does, the latter lose what many micro-steps add (with one micro-step nothing is added up: both are the same)."""
RECIPES = tuple(
    replace(formats, recompute=recompute)
    for recompute in (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)
    for formats in FORMATS
)


@dataclass(frozen=True)
class Choice:
    """The first recipe that fits a card."""

    recipe: Recipe
    peak: int
    """Bytes, without the reserve."""
    largest_micro_batch: int
    """Tokens."""


def needs_with_margin(peak: int) -> float:
    """Bytes of a card on which this peak is sure to fit."""
    return peak * (1 + MARGIN_FRAC) + RESERVE


def choose(run: TrainConfig, n_ranks: int, capacity: int) -> Choice | None:
    """The first of RECIPES with which the run's own micro-batch fits `capacity` bytes with a margin; None: not one does."""
    for recipe in RECIPES:
        candidate = recipe.apply(run)
        peak = predict(candidate, n_ranks).peak
        if needs_with_margin(peak) <= capacity:
            return Choice(recipe, peak, largest_micro_batch(candidate, n_ranks, capacity - RESERVE))
    return None
