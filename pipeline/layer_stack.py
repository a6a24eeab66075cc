"""A contiguous part of a decoder's layers, run as the whole model would run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from depthscope.storage.errors import RequestError
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from .batches import Batch
from .capture import IdentityCheck, OnLayer, OnPoint, capture_layers, first, refuse
from .families import Family
from .frame import Frame
from .layer_loader import LayerLoader


class LayerStack:
    """Layers first..last-1 on one device.

    Parameters
    ----------
    loader
        Whose layers they are; its ``families`` name the modules that are captured.
    frame
        Gives each layer its arguments.
    blocks
        The layers by number: contiguous.
    device
        Where they live.

    Raises
    ------
    ValueError
        The layers are not contiguous.
    """

    def __init__(
        self,
        loader: LayerLoader,
        frame: Frame,
        blocks: Mapping[int, nn.Module],
        device: torch.device,
    ) -> None:
        self.blocks = dict(sorted(blocks.items()))
        numbers = list(self.blocks)
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise ValueError(f"layers {numbers} do not follow each other")
        self._loader, self._frame, self.device = loader, frame, device
        self._first = numbers[0]

    def ready(self, batch: Batch, hidden: Tensor) -> Family:
        """What is known of the layers before a batch runs through them: their family."""
        return self.family

    def run(
        self,
        batch: Batch,
        hidden: Tensor,
        on_point: OnPoint | None = None,
        on_layer: OnLayer | None = None,
    ) -> Tensor:
        """Take the stream of a batch through these layers.

        Parameters
        ----------
        batch
            The micro-batch.
        hidden
            h_first, (lines, width, hidden).
        on_point
            Called with l + 1 and h_{l+1} for each of these layers l, in order.
        on_layer
            Called with l, h_l, a_l, m_l once layer l has run, before h_{l+1}.

        Returns
        -------
        Tensor
            h_last, (lines, width, hidden).

        Callbacks get the model's own tensors and must not write to them.
        """
        return self._run(self.ready(batch, hidden), batch, hidden, on_point, on_layer)

    def differentiable(self, batch: Batch, hidden: Tensor, *, recompute: bool = True) -> Tensor:
        """As `run`, with gradients; what is inside a layer is recomputed on the way back."""
        arguments = self._frame.arguments(batch)
        for layer, block in self.blocks.items():

            def call(stream: Tensor, block: nn.Module = block, layer: int = layer) -> Tensor:
                with self._frame.attending(batch):
                    return first(block(stream, **self._placed(arguments[layer])))

            hidden = checkpoint(call, hidden, use_reentrant=False) if recompute else call(hidden)
        return hidden

    @property
    def family(self) -> Family:
        """Names the modules that are captured, and the order in which they add."""
        return self._loader.families[0]

    def check_identity(self, batch: Batch, hidden: Tensor) -> Family:
        """Check h_{l+1} == h_l + a_l + m_l for these layers, bit for bit.

        The loader keeps only those of its families for which it holds.

        Returns
        -------
        Family
            The first that holds.

        Raises
        ------
        RequestError
            None does: names the first layer that differs and by how much.
        """
        holding, failures = [], []
        for family in self._loader.families:
            check = IdentityCheck(family)
            try:
                self._run(family, batch, hidden, check.on_point, check.on_layer)
            except RequestError as error:
                failures.append(error)
                continue
            if check.failure is None:
                holding.append(replace(family, orders=check.orders))
            else:
                failures.append(refuse(family, check.failure))
        if not holding:
            raise failures[0]
        self._loader.families = holding
        return holding[0]

    def _run(
        self,
        family: Family,
        batch: Batch,
        hidden: Tensor,
        on_point: OnPoint | None,
        on_layer: OnLayer | None,
    ) -> Tensor:
        def after_first(point: int, h: Tensor) -> None:
            if on_point is not None and point > self._first:
                on_point(point, h)

        with (
            torch.inference_mode(),
            self._frame.attending(batch),
            capture_layers(self.blocks, family, after_first, on_layer),
        ):
            arguments = self._frame.arguments(batch)
            hidden = hidden.to(self.device)
            for layer, block in self.blocks.items():
                hidden = first(block(hidden, **self._placed(arguments[layer])))
        return hidden

    def _placed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._frame.device == self.device:
            return dict(arguments)

        def place(value: Any) -> Any:
            return value.to(self.device) if isinstance(value, Tensor) else value

        placed: dict[str, Any] = tree_map(place, dict(arguments))
        return placed
