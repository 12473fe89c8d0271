"""Which experts read a span at each checkpoint: shares, first choices, and how much of it the last checkpoint chooses too."""

import numpy as np

from checkpoints.trace.results import ExpertReading


def expert_readings(
    layers: list[int], n_experts: int, choices_LTK: np.ndarray, final_LTK: np.ndarray | None
) -> list[ExpertReading]:
    """By MoE layer.

    Args:
        layers: numbers of the L blocks that are MoE layers.
        choices_LTK: int64, of each of T tokens the K experts, the most probable first.
        final_LTK: the same of the last checkpoint; None: there is no other.
    """
    readings = []
    for number, layer in enumerate(layers):
        chosen_TK = choices_LTK[number]
        share_E = np.bincount(chosen_TK.reshape(-1), minlength=n_experts) / chosen_TK.size
        agreement = None
        if final_LTK is not None:
            same = (chosen_TK[:, :, None] == final_LTK[number][:, None, :]).any(-1)
            agreement = float(same.mean())
        readings.append(ExpertReading(layer, share_E.tolist(), chosen_TK[:, 0].tolist(), agreement))
    return readings
