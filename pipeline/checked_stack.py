"""A stack that looks before it runs: whether the worker closes, whether its layers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from depthscope.storage.errors import Stopped
from torch import Tensor

from .batches import Batch
from .families import Family
from .layer_stack import LayerStack


class CheckedStack(LayerStack):
    """As `LayerStack`, whose parameters come first.

    Parameters
    ----------
    checked
        Layers whose sums have been checked (see `LayerStack.check_identity`); the others are
        checked, and added to it, before they run for the first time.
    closing
        Whether the worker closes.

    Raises
    ------
    Stopped
        From `ready`, and so from `run`: the worker closes.
    """

    def __init__(self, *arguments: Any, checked: set[int], closing: Callable[[], bool]) -> None:
        super().__init__(*arguments)
        self._checked, self._closing = checked, closing

    def ready(self, batch: Batch, hidden: Tensor) -> Family:
        """Check layers that are new, on the stream of a batch in front of them."""
        if self._closing():
            raise Stopped("the worker is closing")
        if not self._checked.issuperset(self.blocks):
            self.check_identity(batch, hidden)
            self._checked.update(self.blocks)
        return self.family
