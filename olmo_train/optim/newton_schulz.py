"""Orthogonalise batches of matrices by matrix products alone: the nearest orthogonal matrix, U V^T of the SVD, approximately."""

import torch
from torch import Tensor

# Quintic polynomials p(x) = a x + b x^3 + c x^5, one per iteration, each the best for the interval that the one before left
# the singular values in. After five, values from 0.001 of the Frobenius norm up lie between 0.84 and 1.13; five times Jordan's
# (3.4445, -4.7750, 2.0315) leave them between 0.47 and 1.21.
# Source: Amsel et al., "The Polar Express", arXiv 2505.16932, algorithm 1.
POLAR_EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
]
LAST = (1.875, -1.25, 0.375)
SAFETY = 1.01
"""Bfloat16 may push a singular value past the interval; the polynomials are stretched by this much."""


def orthogonalize(x_BRC: Tensor, n_iterations: int) -> Tensor:
    """(B, R, C) -> the same shape and dtype, singular values near 1; products run in that dtype. A matrix of zeros stays zero."""
    if x_BRC.shape[-2] > x_BRC.shape[-1]:
        return orthogonalize(x_BRC.mT, n_iterations).mT
    norms = torch.linalg.vector_norm(x_BRC, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x = (x_BRC / (norms * SAFETY + 1e-20)).to(x_BRC.dtype).contiguous()
    for i in range(n_iterations):
        a, b, c = LAST
        if i < len(POLAR_EXPRESS):
            a, b, c = (value / SAFETY**power for value, power in zip(POLAR_EXPRESS[i], (1, 3, 5), strict=True))
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x


def orthogonalize_stacked(x_BRC: Tensor, stacked: tuple[int, ...], n_iterations: int) -> Tensor:
    """Orthogonalise each of the matrices stacked along R by itself, scaled so that entries have AdamW's root mean square.

    `stacked`: rows of each. Source: Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, equation 4
    (0.2 * sqrt(max(rows, columns))).
    """
    batch, _, columns = x_BRC.shape
    if len(set(stacked)) == 1:  # one batch of them all
        matrices = orthogonalize(x_BRC.reshape(batch * len(stacked), stacked[0], columns), n_iterations)
        return matrices.reshape(x_BRC.shape) * _scale(stacked[0], columns)
    return torch.cat([orthogonalize(m, n_iterations) * _scale(m.shape[1], columns) for m in x_BRC.split(stacked, 1)], 1)


def _scale(rows: int, columns: int) -> float:
    return 0.2 * float(max(rows, columns)) ** 0.5
