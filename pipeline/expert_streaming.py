"""One layer with a mixture of experts over many micro-batches, a few experts in memory at a time.

First the layer runs over every micro-batch up to its experts, and notes which tokens go to which of
them. Then the experts are loaded group after group, the next group while one computes, and each
group takes its tokens of every micro-batch. Last the layer runs again, and is handed what its
experts answered. So the weights are read once, and what lies before the experts runs twice.

The result is that of the resident layer, bit for bit: a token's answers are summed in its order,
all at once. So all of them are kept: per token, the experts it is sent to times the size of the
stream, where the stream itself is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from depthscope.storage.errors import RequestError
from torch import Tensor

from .batches import Batch
from .capture import OnLayer, OnPoint
from .expert_answers import Routed, Routing, StandIn, ask
from .expert_loader import ExpertLoader
from .families import Family
from .frame import Frame
from .layer_loader import LayerLoader
from .layer_stack import LayerStack

IMPLEMENTATION = "grouped_mm"
"""The one implementation of experts that can be streamed bit for bit."""


class StreamedLayer:
    """One layer whose experts are never in memory all at once.

    Call `route` for every micro-batch, then `compute`, then `run` for every micro-batch.

    Parameters
    ----------
    loader, frame
        Of the checkpoint.
    layer
        0-based; it must have experts.
    device
        Where the layer computes.
    group_bytes
        Bound on the bytes of experts in memory (two groups: one computes, one is loaded).

    Raises
    ------
    RequestError
        The layer's experts cannot be loaded in groups, or not summed as the resident layer does;
        or two experts are larger than the bound.
    """

    def __init__(
        self,
        loader: LayerLoader,
        frame: Frame,
        layer: int,
        device: torch.device,
        group_bytes: int,
    ) -> None:
        self._loader = ExpertLoader(loader, layer)
        self.device = device
        experts = self._loader.skeleton
        _refuse_unlike(loader, experts)
        size = group_bytes // (2 * self._loader.expert_bytes)
        if size < 1:
            raise RequestError(
                f"layer {layer} of {loader.folder} needs two of its experts in memory, "
                f"{2 * self._loader.expert_bytes} bytes, where {group_bytes} are allowed; "
                "allow more memory"
            )
        starts = range(0, self._loader.count, size)
        self._groups = [(start, min(start + size, self._loader.count)) for start in starts]
        self._stand_in = StandIn(experts)
        block = self._loader.block(self._stand_in, device)
        self._stack = LayerStack(loader, frame, {layer: block}, device)
        self._routings: dict[int, Routing] = {}

    def route(self, number: int, batch: Batch, hidden: Tensor) -> None:
        """Run a micro-batch up to the experts; what they are asked is kept where ``hidden`` is.

        Parameters
        ----------
        number
            The caller's name for the micro-batch.
        hidden
            h_l, (lines, width, hidden).
        """
        self._stand_in.__dict__.update(asked=None, answer=None)
        try:
            self._stack.run(batch, hidden)
        except Routed:
            states, experts, weights = self._stand_in.asked
            self._stand_in.__dict__.update(asked=None)
        else:
            raise RequestError(
                f"layer {self._loader.layer} did not call its experts; use a device with more "
                "memory"
            )
        place, shape = hidden.device, (experts.numel(), states.shape[-1])
        answers = torch.empty(shape, dtype=states.dtype, device=place)
        self._routings[number] = Routing(
            states.to(place), experts.to(place), weights.to(place), answers
        )

    def compute(self) -> None:
        """Load the experts, group after group, and collect their answers to all micro-batches.

        Raises
        ------
        WorkFailed, OSError
            The checkpoint can no longer be read.
        """
        with ThreadPoolExecutor(1, "experts") as pool, torch.inference_mode():
            coming = pool.submit(self._load, *self._groups[0])
            for number, (first, last) in enumerate(self._groups):
                experts = coming.result()
                if number + 1 < len(self._groups):
                    coming = pool.submit(self._load, *self._groups[number + 1])
                for routing in self._routings.values():
                    ask(experts, first, last, routing, self.device)
                del experts

    def run(
        self,
        number: int,
        batch: Batch,
        hidden: Tensor,
        on_point: OnPoint | None = None,
        on_layer: OnLayer | None = None,
    ) -> Tensor:
        """As `LayerStack.run`, with the answers that were collected."""
        self._hand_over(number)
        result = self._stack.run(batch, hidden, on_point, on_layer)
        self._stand_in.__dict__.update(answer=None)
        return result

    def check_identity(self, number: int, batch: Batch, hidden: Tensor) -> Family:
        """As `LayerStack.check_identity`, for a micro-batch whose answers were collected."""
        self._hand_over(number)
        return self._stack.check_identity(batch, hidden)

    def _load(self, first: int, last: int) -> Any:
        if self.device.type != "cuda":
            return self._loader.experts(first, last, self.device)
        # A stream of its own, so that the copy runs beside the group that computes.
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            return self._loader.experts(first, last, self.device)

    def _hand_over(self, number: int) -> None:
        routing = self._routings[number]
        tokens, k = routing.experts.shape
        with torch.inference_mode():
            weights = routing.weights.to(self.device).reshape(-1, 1)
            weighted = routing.answers.to(self.device) * weights
            total = weighted.view(tokens, k, -1).sum(dim=1).to(routing.states.dtype)
        self._stand_in.__dict__.update(answer=total)


def run_streamed(
    loader: LayerLoader,
    frame: Frame,
    layer: int,
    device: torch.device,
    batches: Sequence[Batch],
    hidden: Sequence[Tensor],
    group_bytes: int,
    callbacks: Sequence[tuple[OnPoint | None, OnLayer | None]] | None = None,
) -> Iterator[Tensor]:
    """Take many micro-batches through one layer, a group of its experts in memory at a time.

    Parameters
    ----------
    batches, hidden
        The micro-batches and their h_l, each (lines, width, hidden).
    group_bytes
        Bound on the bytes of experts in memory.
    callbacks
        Per micro-batch, ``on_point`` and ``on_layer`` of `LayerStack.run`.

    Yields
    ------
    Tensor
        h_{l+1} of every micro-batch, in order.

    Raises
    ------
    RequestError
        As `StreamedLayer`.
    """
    streamed = StreamedLayer(loader, frame, layer, device, group_bytes)
    for number, batch in enumerate(batches):
        streamed.route(number, batch, hidden[number])
    streamed.compute()
    for number, batch in enumerate(batches):
        calls = callbacks[number] if callbacks is not None else (None, None)
        yield streamed.run(number, batch, hidden[number], *calls)


def _refuse_unlike(loader: LayerLoader, experts: Any) -> None:
    used = loader.info.experts
    if used != IMPLEMENTATION:
        raise RequestError(
            f"experts implementation {used!r} cannot be streamed bit for bit; use "
            f"{IMPLEMENTATION!r}, or a device that holds the whole layer"
        )
    if experts.has_post_expert_norm:
        raise RequestError(
            f"model type {loader.info.family!r} normalises what each expert answers, which cannot "
            "be streamed; use a device that holds the whole layer"
        )


class StreamedStack(LayerStack):
    """A streamed layer with the manners of a stack: micro-batches are known by themselves.

    Parameters
    ----------
    loader, frame, layer, device, group_bytes
        As for `StreamedLayer`.
    """

    def __init__(
        self,
        loader: LayerLoader,
        frame: Frame,
        layer: int,
        device: torch.device,
        group_bytes: int,
    ) -> None:
        self._streamed = StreamedLayer(loader, frame, layer, device, group_bytes)
        self._checked = False

    def route(self, batch: Batch, hidden: Tensor) -> None:
        """Note what a micro-batch asks the experts."""
        self._streamed.route(id(batch), batch, hidden)

    def compute(self) -> None:
        """Collect the experts' answers to all micro-batches."""
        self._streamed.compute()

    def run(
        self,
        batch: Batch,
        hidden: Tensor,
        on_point: OnPoint | None = None,
        on_layer: OnLayer | None = None,
    ) -> Tensor:
        """Take the stream of a routed micro-batch through the layer."""
        if not self._checked:
            self._streamed.check_identity(id(batch), batch, hidden)
            self._checked = True
        return self._streamed.run(id(batch), batch, hidden, on_point, on_layer)
