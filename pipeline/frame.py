"""A decoder without its layers: what goes into the first, and the arguments that each one gets.

The model's own forward runs with stubs in place of its layers, which note what they are called with
and hand the stream on; after the last of them it is stopped. So masks, positions and rotary
embeddings of every layer are the model's own, for any architecture. While the embedding is not
loaded its weights are zeros that take no memory: no argument depends on them (this is tried, when
the checkpoint is opened).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .kept_arguments import Arguments, KeptArguments
from .packing import attention_by_segment, can_attend_by_segment

_See = Callable[[int, Tensor, Arguments], None]


class _Done(Exception):
    """Ends a forward pass when all is known."""


class Stub(nn.Module):
    """Stands for a layer: shows what it is called with, and returns the stream as it came.

    Anything else that the model asks of it, it asks of the layer (on the meta device).
    """

    def __init__(self, block: nn.Module, layer: int, frame: Frame) -> None:
        super().__init__()
        # Not as a child: the layer is no part of the frame.
        self.__dict__.update(block=block, layer=layer, frame=frame)
        self.__dict__["signature"] = inspect.signature(block.forward)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Show and pass on."""
        given = self.signature.bind(*args, **kwargs).arguments
        stream = given.pop(next(iter(given)))
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given.update(given.pop(name, {}))
        self.frame.see(self.layer, stream, given)
        return (stream,) if self.frame.layers_return_tuples else stream


class Frame:
    """The decoder without its layers, on one device; for one thread.

    Parameters
    ----------
    model
        A copy of the base model of its own, weights on the meta device.
    path
        Where its list of layers is.
    blocks
        The layers, on the meta device.
    needed
        Names of the weights that are used before the layers; the others stay on the meta device.
    read
        Puts these weights into the model, on a device.
    device
        Where the stream and the arguments belong.

    Attributes
    ----------
    config
        The model's config, the same object that its loader's layers have.
    kept
        Arguments of micro-batches that come again; nothing is kept unless it is told of these.
    layers
        L.
    model
        The model with stubs in place of its layers.
    """

    def __init__(
        self,
        model: Any,
        path: str,
        blocks: Sequence[nn.Module],
        needed: frozenset[str],
        read: Callable[[Any, torch.device], None],
        device: torch.device,
    ) -> None:
        self.device, self.config = device, model.config
        self.layers_return_tuples = False
        self.kept = KeptArguments()
        self.model, self._needed, self._read = model, needed, read
        self.layers = len(blocks)
        parent, _, name = path.rpartition(".")
        stubs = [Stub(block, layer, self) for layer, block in enumerate(blocks)]
        setattr(model.get_submodule(parent), name, nn.ModuleList(stubs))
        place_buffers(model, device)
        self.release()

    def load(self) -> None:
        """Read the weights that are used before the layers (the embedding).

        Raises
        ------
        WorkFailed
            The checkpoint can no longer be read.
        """
        self._read(self.model, self.device)
        self.model.requires_grad_(False)

    def release(self) -> None:
        """Give the weights' memory back."""
        self.fill(0.0)

    def fill(self, value: float) -> None:
        """Stand one number, which takes no memory, for every weight before the layers."""
        for module_name, module in self.model.named_modules():
            prefix = f"{module_name}." if module_name else ""
            for name, weight in module.named_parameters(recurse=False):
                if prefix + name in self._needed:
                    one = torch.full((), value, dtype=weight.dtype, device=self.device)
                    empty = nn.Parameter(one.expand(weight.shape), requires_grad=False)
                    setattr(module, name, empty)

    def embed(self, batch: Batch) -> Tensor:
        """h_0 of a batch, (lines, width, hidden); needs `load`."""
        stream: list[Tensor] = []

        def see(layer: int, h: Tensor, arguments: Arguments) -> None:
            stream.append(h)
            raise _Done

        self.forward(batch, see)
        return stream[0]

    def arguments(self, batch: Batch) -> Sequence[Arguments]:
        """What the model hands to each of its layers, with the stream, for this batch.

        Returns
        -------
        sequence of mappings
            Keyword arguments of layers 0..L-1; layers of one kind share their tensors.
        """
        return self.kept.of(batch, lambda: self._arguments(batch))

    def _arguments(self, batch: Batch) -> Sequence[Arguments]:
        seen: list[Arguments] = []

        def see(layer: int, h: Tensor, arguments: Arguments) -> None:
            seen.append(arguments)
            if layer == self.layers - 1:
                raise _Done

        self.forward(batch, see)
        return seen

    def attending(self, batch: Batch) -> AbstractContextManager[None]:
        """Surrounds calls of layers: documents packed without a mask attend one by one."""
        if can_attend_by_segment(self.config, batch.position_ids):
            return attention_by_segment(self.config, batch.position_ids)
        return nullcontext()

    def forward(self, batch: Batch, see: _See) -> None:
        """Run the model's forward; ``see`` gets what each layer is called with."""
        self.see = see
        given: dict[str, Any] = {}
        if batch.position_ids is not None:
            given["position_ids"] = batch.position_ids.to(self.device)
        try:
            with torch.no_grad(), self.attending(batch):
                ids = batch.input_ids.to(self.device)
                self.model(input_ids=ids, use_cache=False, **given)
        except _Done:
            pass
        finally:
            del self.see


def place_buffers(module: nn.Module, device: torch.device) -> None:
    """Move the buffers of a module, and only those, to a device."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if not buffer.is_meta:
                part._buffers[name] = buffer.to(device)
