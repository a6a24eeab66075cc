"""Trying, before a weight is read, whether a decoder's layers can be called one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from depthscope.storage.errors import RequestError
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .batches import Batch
from .description import ModelInfo, one_line, quiet
from .frame import Frame
from .kept_arguments import Arguments

MakeFrame = Callable[[frozenset[str]], Frame]


def find_needed(
    make: MakeFrame, everything: frozenset[str], info: ModelInfo
) -> tuple[frozenset[str], bool]:
    """Which weights are used before the layers, and whether layers return tuples.

    Parameters
    ----------
    make
        Makes a frame whose weights before the layers have these names.
    everything
        Names of all weights outside the layers.

    Raises
    ------
    RequestError
        The model's forward does more with its layers than to call one after the other with
        arguments that depend on the tokens' ids and positions alone.
    """
    ids = torch.tensor([[0, 1, 2], [1, 2, 0]]).clamp(max=info.vocabulary - 1)
    batch = Batch(ids, None, (), ())
    try:
        with quiet():
            tuples = _returns_tuples(make(everything), batch)
            needed = _used(make(everything), batch, tuples)
            # Weights not among the needed ones are on the meta device now: using one is an error.
            frame = make(needed)
            frame.layers_return_tuples = tuples
            zeros = frame.arguments(batch)
            frame.fill(1.0)
            ones = frame.arguments(batch)
    except Exception as error:
        raise RequestError(
            f"model type {info.family!r}: its layers cannot be called one by one "
            f"({one_line(error)}); use --schedule resident"
        ) from error
    if len(zeros) != frame.layers or not all(map(_same, zeros, ones)):
        raise RequestError(
            f"model type {info.family!r}: the arguments of its layers depend on more than tokens "
            "and positions; use --schedule resident"
        )
    return needed, tuples


def _returns_tuples(frame: Frame, batch: Batch) -> bool:
    """Whether the model takes the first item of what a layer returns."""
    for tuples in (False, True):
        frame.layers_return_tuples = tuples
        streams: list[Any] = []
        try:
            frame.forward(batch, lambda layer, h, arguments: streams.append(h))  # noqa: B023
        except Exception:
            if tuples and len(streams) < 2:
                raise
        if all(isinstance(h, Tensor) and h.shape == streams[0].shape for h in streams):
            return tuples
    raise TypeError("layers return neither a tensor nor a tuple")


def _used(frame: Frame, batch: Batch, tuples: bool) -> frozenset[str]:
    """Names of the weights of modules that are called before the first layer."""
    frame.layers_return_tuples = tuples
    called: set[str] = set()
    handles = []
    for path, module in frame.model.named_modules():
        names = [
            f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)
        ]

        def note(*_: Any, names: list[str] = names) -> None:
            called.update(names)

        if names:
            handles.append(module.register_forward_pre_hook(note))
    frame.embed(batch)
    for handle in handles:
        handle.remove()
    return frozenset(called)


def _same(one: Arguments, other: Arguments) -> bool:
    pairs = zip(tree_leaves(dict(one)), tree_leaves(dict(other)), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))
