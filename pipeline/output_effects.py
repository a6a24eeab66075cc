"""What branches change of the next-token distributions at their measured positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .effect_table import EffectTable
from .interventions import Branch
from .placed_head import PlacedHead


def note_outputs(
    table: EffectTable,
    document: int,
    base: Tensor,
    noop: Tensor,
    branches: Sequence[tuple[Branch, Tensor]],
    head: PlacedHead,
    budget_bytes: int,
) -> None:
    """Compare the outputs of one document's branches, and of its no-op, with the baseline's.

    Parameters
    ----------
    base, noop
        (length, d), the streams of the baseline and of a no-op at point L.
    branches
        Each with its own, as long or longer.
    budget_bytes
        See `compare_outputs`.
    """
    measured: dict[tuple[int, ...], list[tuple[Branch, Tensor]]] = {}
    for branch, stream in branches:
        positions = tuple(torch.nonzero(branch.measures)[:, 0].tolist())
        measured.setdefault(positions, []).append((branch, stream))
    for positions, own in sorted(measured.items(), key=lambda item: item[0]):
        index = torch.tensor(positions, device=base.device)
        lines = torch.stack([noop[index], *(stream[index] for _, stream in own)])
        distance, divergence = compare_outputs(head, base[index], lines, budget_bytes)
        table.output_noise(document, distance[0])
        for row, (branch, _) in enumerate(own, start=1):
            table.outputs(branch, distance[row], divergence[row])


def compare_outputs(
    head: PlacedHead, base: Tensor, lines: Tensor, budget_bytes: int
) -> tuple[Tensor, Tensor]:
    """How far the next-token distributions of lines are from the baseline's.

    Parameters
    ----------
    base
        (positions, d), the baseline's stream at point L.
    lines
        (n, positions, d), the branches'.
    budget_bytes
        Largest total size of arrays of positions × vocabulary.

    Returns
    -------
    tuple of Tensor
        (n, positions) float32 each: ‖p − p'‖₂ and KL(p ‖ p') in nats.
    """
    n, positions = lines.shape[:2]
    distance = torch.empty((n, positions))
    divergence = torch.empty((n, positions))
    # The baseline's logarithms and probabilities, a line's two, and their difference.
    step = max(1, budget_bytes // (5 * 4 * head.vocabulary))
    for first in range(0, positions, step):
        part = slice(first, min(first + step, positions))
        log_p = head.logits(base[part]).log_softmax(-1)
        p = log_p.exp()
        for number in range(n):
            log_q = head.logits(lines[number, part]).log_softmax(-1)
            divergence[number, part] = (p * (log_p - log_q)).sum(-1).clamp_min(0.0).cpu()
            distance[number, part] = torch.linalg.vector_norm(p - log_q.exp(), dim=-1).cpu()
    return distance, divergence
