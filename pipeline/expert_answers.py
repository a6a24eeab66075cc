"""What some of a layer's experts answer to a micro-batch, as if all of them were there.

Matrix products see the same rows, in the same order, with the same weights as in transformers'
``grouped_mm``, so the answers are those of the resident layer, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Private, and on purpose: these rows must meet the very kernel that the resident layer calls.
from transformers.integrations.moe import _grouped_linear


class Routed(Exception):
    """Ends a layer's first run when its experts are called."""


@dataclass
class Routing:
    """What the experts of one micro-batch are asked, and what they answered so far."""

    states: Tensor
    """(tokens, hidden)"""
    experts: Tensor
    """(tokens, k), numbers of experts"""
    weights: Tensor
    """(tokens, k)"""
    answers: Tensor
    """(tokens * k, hidden), where the stream is kept"""


class StandIn(nn.Module):
    """Stands for a layer's experts: first notes their input, later gives their answer."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.__dict__.update(experts=experts, asked=None, answer=None)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["experts"], name)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The answer of `StreamedLayer.run`; without one, note what is asked and stop."""
        if self.answer is None:
            self.__dict__["asked"] = (hidden_states, top_k_index, top_k_weights)
            raise Routed
        answer: Tensor = self.answer
        return answer


def ask(experts: Any, first: int, last: int, routing: Routing, device: torch.device) -> None:
    """Answers of experts first..last-1 to one micro-batch, as transformers' grouped_mm has them."""
    tokens, k = routing.experts.shape
    wanted, order = torch.sort(routing.experts.to(device).reshape(-1))
    start, end = torch.searchsorted(wanted, wanted.new_tensor([first, last])).tolist()
    if start == end:
        return
    chosen, places = wanted[start:end] - first, order[start:end]
    rows = _Rows(tokens * k, start, end, chosen, last - first, device)
    states = rows.spread(routing.states.to(device)[places // k])
    if experts.has_gate:
        inner = experts._apply_gate(rows.multiply(experts, "gate_up_proj", states))
    else:
        inner = experts.act_fn(rows.multiply(experts, "up_proj", states))
    answers = rows.multiply(experts, "down_proj", inner)[rows.place]
    kept = routing.answers
    kept.index_copy_(0, places.to(kept.device), answers.to(kept.device))


class _Rows:
    """Rows start..end-1 of a micro-batch's, sorted by expert: those that a group of experts gets.

    They stand among all the others, whose values mean nothing. On a CPU in their own place, since
    vectors of an activation and addresses of a product then fall as they do in the resident layer;
    on a GPU in front, since its kernel is chosen by the number of all rows and starts at the first.
    """

    def __init__(
        self,
        total: int,
        start: int,
        end: int,
        chosen: Tensor,
        experts: int,
        device: torch.device,
    ) -> None:
        self._total, self._chosen, self._alone = total, chosen, device.type == "cpu"
        self.place = slice(start, end) if self._alone else slice(0, end - start)
        self._ends = torch.cumsum(torch.bincount(chosen, minlength=experts), 0, dtype=torch.int32)

    def spread(self, few: Tensor) -> Tensor:
        """(rows of the group, n) in their place among (all rows, n)."""
        among = few.new_zeros(self._total, few.shape[-1])
        among[self.place] = few
        return among

    def multiply(self, experts: Any, name: str, rows: Tensor) -> Tensor:
        """(all rows, n) times each row's expert, its bias added."""
        weight, transposed = getattr(experts, name), experts.is_transposed
        given = rows[self.place] if self._alone else rows
        product = _grouped_linear(given, weight, self._ends, is_transposed=transposed)
        if experts.has_bias:
            bias = getattr(experts, f"{name}_bias")[self._chosen]
            product[: len(bias)].add_(bias)
        return self.spread(product) if self._alone else product
