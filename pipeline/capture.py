"""Reading the residual stream of a running decoder, without changing it.

A forward pre-hook on each decoder layer sees h_l; forward hooks on the modules that `families`
names see a_l and m_l, exactly as they are added to the stream. Nothing is copied: callbacks get
the live tensors, on whatever device the layer lies. Cost: three Python calls per layer and pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from depthscope.storage.errors import RequestError
from torch import Tensor, nn

from .families import Family, add

OnPoint = Callable[[int, Tensor], None]
"""Called with l and h_l, in the order l = 0..L."""
OnLayer = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called with l, h_l, a_l, m_l after layer l has run and before h_{l+1} is handed on."""


def first(value: Any) -> Tensor:
    """The tensor that a module returned, alone or first in a tuple."""
    return value if isinstance(value, Tensor) else value[0]


class _Hooks:
    """The hooks of one pass; keeps h, a, m of the layer that is running, and nothing else."""

    def __init__(self, last: int, on_point: OnPoint | None, on_layer: OnLayer | None) -> None:
        self._last = last
        self._on_point = on_point
        self._on_layer = on_layer
        self._h: Tensor | None = None
        self._a: Tensor | None = None
        self._m: Tensor | None = None

    def enter(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            h = args[0] if args else kwargs["hidden_states"]
            if self._on_point is not None:
                self._on_point(layer, h)
            if self._on_layer is not None:
                self._h, self._a, self._m = h, None, None

        return hook

    def attention(self, module: nn.Module, args: Any, output: Any) -> None:
        self._a = first(output)

    def mlp(self, module: nn.Module, args: Any, output: Any) -> None:
        self._m = first(output)

    def leave(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._on_layer is not None:
                if self._h is None or self._a is None or self._m is None:
                    raise RequestError(
                        f"layer {layer} ran without calling its attention or MLP module, so their "
                        "outputs cannot be captured; use another --attention implementation"
                    )
                self._on_layer(layer, self._h, self._a, self._m)
                self._h = self._a = self._m = None
            if layer == self._last and self._on_point is not None:
                self._on_point(layer + 1, first(output))

        return hook


@contextmanager
def capture(
    model: nn.Module, family: Family, on_point: OnPoint | None, on_layer: OnLayer | None
) -> Iterator[None]:
    """While open, every forward of ``model`` calls ``on_point`` and ``on_layer`` as it goes.

    ``on_point(l, h)`` gets h_l, (batch, sequence, hidden), for l = 0..L; h_L is the last layer's
    output, before the final norm. ``on_layer(l, h, a, m)`` gets what attention and MLP add to the
    stream. Tensors are the model's own, in its dtype and on the layer's device: read, never write.
    All hooks are removed on leaving, whatever happened inside.
    """
    layers = dict(enumerate(family.blocks(model)))
    with capture_layers(layers, family, on_point, on_layer):
        yield


@contextmanager
def capture_layers(
    layers: Mapping[int, nn.Module],
    family: Family,
    on_point: OnPoint | None,
    on_layer: OnLayer | None,
) -> Iterator[None]:
    """As `capture`, for some contiguous layers by number, called one after the other."""
    last = max(layers)
    hooks = _Hooks(last, on_point, on_layer)
    handles = []
    try:
        for layer, block in layers.items():
            handles.append(block.register_forward_pre_hook(hooks.enter(layer), with_kwargs=True))
            if on_layer is not None:
                handles.append(family.attention_of(block).register_forward_hook(hooks.attention))
                handles.append(family.mlp_of(block).register_forward_hook(hooks.mlp))
            if on_layer is not None or layer == last:
                handles.append(block.register_forward_hook(hooks.leave(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class IdentityCheck:
    """h_{l+1} == h_l + a_l + m_l for every layer, bit for bit, in one order for all layers.

    Its methods are the callbacks of `capture`; `failure` holds, after the pass, None or a
    sentence saying at which layer no order was left, and by how much it differed.
    """

    def __init__(self, family: Family) -> None:
        self.orders = family.orders
        self.failure: str | None = None
        self._family = family
        self._seen: tuple[int, Tensor, Tensor, Tensor] | None = None

    def on_layer(self, layer: int, h: Tensor, a: Tensor, m: Tensor) -> None:
        """Keep what layer ``layer`` adds until its output is seen."""
        self._seen = (layer, h, a, m)

    def on_point(self, point: int, h: Tensor) -> None:
        """Compare h_{l+1} with the sum of what was kept."""
        if self._seen is None or self.failure is not None:
            return
        layer, before, a, m = self._seen
        self._seen = None
        if not before.shape == a.shape == m.shape == h.shape:
            self.failure = f"at layer {layer} the shapes of stream, attention and MLP differ"
            return
        before, a, m = (x.to(h.device) for x in (before, a, m))
        sums = {order: add(order, before, a, m) for order in self.orders}
        self.orders = tuple(order for order in self.orders if _same(sums[order], h))
        if not self.orders:
            worst = min(_difference(total, h) for total in sums.values())
            self.failure = (
                f"at layer {layer}, {self._family.attention} + {self._family.mlp} added to the "
                f"stream differ from the layer's output by up to {worst:.3g}"
            )


def _same(x: Tensor, y: Tensor) -> bool:
    return bool(((x == y) | (x.isnan() & y.isnan())).all())


def _difference(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).abs().max())


def check_identity(model: nn.Module, family: Family, forward: Callable[[], Any]) -> Family:
    """Run ``forward`` once and check the identity at every layer.

    Returns
    -------
    The family with the one order of addition that was found to hold.

    Raises
    ------
    RequestError
        names the family, the first layer that differs and the largest difference.
    """
    check = IdentityCheck(family)
    with torch.inference_mode(), capture(model, family, check.on_point, check.on_layer):
        forward()
    if check.failure is not None:
        raise refuse(family, check.failure)
    return Family(family.name, family.layers, family.attention, family.mlp, check.orders[:1])


def refuse(family: Family, failure: str) -> RequestError:
    """The error that says how an `IdentityCheck` failed."""
    return RequestError(
        f"model type {family.name!r} cannot be captured: {failure}; every layer must "
        "be input + attention + MLP"
    )
