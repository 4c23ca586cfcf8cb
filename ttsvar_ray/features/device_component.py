"""The first principal component of each image's patches, on the device where the patches are.

Shape legend: B images, P patches, W width, M the smaller of P and W.
"""

from __future__ import annotations

import torch
from torch import Tensor

SQUARINGS = 20
"""Of the Gram matrix: eigenvectors other than the first are left with (ratio of eigenvalues) ^ 2^20."""


def first_component_on_device(patches_BPW: Tensor) -> Tensor:
    """Return float32 [B, P]: each image's patches along its first principal direction.

    The rule for the sign is that of `search.principal_component.ComponentSign.DETERMINISTIC`. A matrix that
    is squared again and again keeps its largest eigenvector alone: matrix products in place of an eigenvalue
    solver, which is why this is quick on a GPU.

    Tolerance: where the two largest eigenvalues differ by more than one part in 10,000, the result is that of
    `search.principal_component.first_component` but for 1e-5 of its deviation. Of closer ones neither knows
    a direction: both return a mixture.
    """
    centred = patches_BPW.double()
    centred = centred - centred.mean(dim=1, keepdim=True)
    by_width = centred.shape[2] <= centred.shape[1]
    power_BMM = _unit_trace(centred.mT @ centred if by_width else centred @ centred.mT)
    for _ in range(SQUARINGS):
        power_BMM = _unit_trace(power_BMM @ power_BMM)
    # Each column of what is left is a multiple of the eigenvector; the longest one is known best.
    longest = power_BMM.diagonal(dim1=1, dim2=2).argmax(dim=1)
    vector_BM1 = power_BMM.gather(2, longest[:, None, None].expand(-1, power_BMM.shape[1], 1))
    direction_BW1 = _unit_length(vector_BM1 if by_width else centred.mT @ vector_BM1)
    # Once more through the patches themselves, which takes away what the squarings rounded.
    direction_BW1 = _oriented(_unit_length(centred.mT @ (centred @ direction_BW1)))
    return (centred @ direction_BW1).squeeze(2).float()


def _unit_trace(matrix_BMM: Tensor) -> Tensor:
    trace = matrix_BMM.diagonal(dim1=1, dim2=2).sum(dim=1)
    # Patches that are all equal have no direction; zero is what their projections are whichever is taken.
    return matrix_BMM / trace.clamp_min(torch.finfo(trace.dtype).tiny)[:, None, None]


def _unit_length(vectors_BM1: Tensor) -> Tensor:
    length = vectors_BM1.norm(dim=1, keepdim=True)
    return vectors_BM1 / length.clamp_min(torch.finfo(length.dtype).tiny)


def _oriented(direction_BW1: Tensor) -> Tensor:
    """Return each direction or its opposite, so that its largest coordinate is positive."""
    magnitude = direction_BW1.abs()
    largest = magnitude >= magnitude.amax(dim=1, keepdim=True) * (1 - 1e-6)
    places = torch.arange(magnitude.shape[1], 0, -1, device=magnitude.device)[None, :, None]
    leading = (largest * places).argmax(dim=1, keepdim=True)
    return torch.where(direction_BW1.gather(1, leading) < 0, -direction_BW1, direction_BW1)
