"""Integrated gradients: how much of the answer's probability comes from where.

For every layer and part, x is the tensor at all positions of a document (the layer's output, or
what attention or MLP add), b its mean over the document, F the sum of the probabilities that the
model gives to the answer's tokens when x is put in place:

    attribution[position] = Σ_d (x - b) · 1/n Σ_k ∂F(b + (k - ½)/n · (x - b)) / ∂x,    k = 1..n
    completeness_gap      = Σ attribution - (F(x) - F(b))

Steps ride together in one call; every layer is recomputed on the way back, so that one layer's
activations at a time are held. Source: Sundararajan et al. 2017; Csordás et al. 2025, figure 6
(methods.md 1.6), whose code takes the left ends of 256 steps instead of the middles. The function
may jump on the path, so the gap need not vanish: it is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np
import torch
from depthscope.storage.commits import Commit
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.errors import RequestError
from depthscope.storage.tasks import Task
from torch import Tensor

from .batches import Batch
from .effects_documents import EffectsDocument, commit_effects, documents_of
from .equipment import Equipment
from .frame import Frame
from .layer_stack import LayerStack
from .placed_head import PlacedHead

_SUMS = ("completeness_gap", "target_value", "baseline_value")


class GradientsWork:
    """A task of integrated gradients on its way through the layers, which it all keeps.

    Attributes
    ----------
    point
        The point reached: the next layer to run.
    done
        Resolved with the task's commit, or with what went wrong.
    """

    def __init__(
        self,
        equipment: Equipment,
        record: EffectsRecord,
        task: Task,
        done: Future[tuple[Commit, ...]],
    ) -> None:
        self.equipment, self.record, self.done, self.point = equipment, record, done, 0
        self.task = record.task(task.index)
        self._started = time.time()
        self._documents = documents_of(equipment, record, self.task)
        self._stacks: list[LayerStack] = []
        self._streams: list[list[Tensor]] = [[] for _ in self._documents]
        self._added: list[list[dict[str, Tensor]]] = [[] for _ in self._documents]
        documents, layers = len(self._documents), self.task.sources[1] - self.task.sources[0]
        shape = (len(record.parts), documents, layers)
        self.arrays = {name: np.full(shape, np.nan, np.float32) for name in _SUMS}
        self.arrays["attribution"] = np.full((*shape, record.positions), np.nan, np.float32)

    def embed(self, frame: Frame) -> None:
        """Point 0 of every document."""
        for document, streams in zip(self._documents, self._streams, strict=True):
            streams.append(frame.embed(Batch(document.ids[None], None, (), ())))

    def streams(self) -> Iterable[tuple[Batch, Tensor]]:
        """None: its branches need whole layers."""
        raise RequestError(
            "interventions need whole layers in memory: allow more --memory, or a smaller model"
        )

    def run_layer(self, layer: int, stack: LayerStack) -> None:
        """The plain pass: what the paths lead to."""
        self._stacks.append(stack)
        for number, document in enumerate(self._documents):
            seen: list[Tensor] = []

            def see(_: int, h: Tensor, a: Tensor, m: Tensor, seen: list[Tensor] = seen) -> None:
                seen.extend((a, m))

            batch = _lines(1, len(document.ids))
            out = stack.run(batch, self._streams[number][-1], None, see)
            self._streams[number].append(out)
            self._added[number].append({"attention": seen[0], "mlp": seen[1]})
        self.point = layer + 1

    def finish(self, head: PlacedHead) -> None:
        """Integrate along every path, write and commit."""
        # The plain pass ran in inference mode, whose tensors know no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            for number, document in enumerate(self._documents):
                for part in range(len(self.record.parts)):
                    for layer in range(*self.task.sources):
                        if layer in self.record.sources:
                            self._integrate(number, document, part, layer, head)
                rows = 1 / self.record.source_blocks
                self.equipment.rows_done += rows
        self.done.set_result(
            commit_effects(self.equipment, self.record, self.task, self.arrays, self._started)
        )

    def _integrate(
        self, number: int, document: EffectsDocument, part: int, layer: int, head: PlacedHead
    ) -> None:
        name = self.record.parts[part]
        if name == "layer":
            end = self._streams[number][layer + 1]
        else:
            end = self._added[number][layer][name]
        end = end.clone().float()
        base = end.mean(dim=1, keepdim=True).expand_as(end)
        value = self._function(number, document, name, layer, head)
        steps = int(self.record.request["steps"])
        at_once = max(1, int(self.record.identity_fields["batch_tokens"]) // len(document.ids) // 4)
        total = torch.zeros_like(end)
        for first in range(0, steps, at_once):
            middles = (torch.arange(first, min(first + at_once, steps)) + 0.5) / steps
            path = base + middles.to(end)[:, None, None] * (end - base)
            path = path.to(self._streams[number][0].dtype).requires_grad_()
            (gradient,) = torch.autograd.grad(value(path).sum(), path)
            total += gradient.float().sum(0, keepdim=True)
        attribution = ((end - base) * total / steps).sum(-1)[0]
        with torch.no_grad():
            dtype = self._streams[number][0].dtype
            reached, begun = value(torch.cat([end, base]).to(dtype)).tolist()
        place = (part, number, layer - self.task.sources[0])
        self.arrays["attribution"][(*place, slice(0, len(document.ids)))] = (
            attribution.cpu().numpy()
        )
        self.arrays["target_value"][place] = reached
        self.arrays["baseline_value"][place] = begun
        self.arrays["completeness_gap"][place] = float(attribution.sum()) - (reached - begun)

    def _function(
        self, number: int, document: EffectsDocument, name: str, layer: int, head: PlacedHead
    ) -> Callable[[Tensor], Tensor]:
        """F: from tensors in place of the part's, (lines, width, d), to sums of probabilities."""
        places = torch.nonzero(document.answer)[:, 0]
        following = document.ids[places + 1]
        start = self._streams[number][layer].clone()

        def value(tensors: Tensor) -> Tensor:
            batch = _lines(len(tensors), tensors.shape[1])
            stream = tensors
            if name != "layer":
                stack = self._stacks[layer]
                begin = start.expand_as(tensors)
                block = stack.blocks[layer]
                module = {
                    "attention": stack.family.attention_of,
                    "mlp": stack.family.mlp_of,
                }[name](block)

                def put(_: object, args: object, output: object) -> object:
                    return (tensors, *output[1:]) if isinstance(output, tuple) else tensors

                handle = module.register_forward_hook(put)
                try:
                    stream = stack.differentiable(batch, begin, recompute=False)
                finally:
                    handle.remove()
            for stack in self._stacks[layer + 1 :]:
                stream = stack.differentiable(batch, stream)
            rows = stream[:, places.to(stream.device)]
            logits = head.differentiable(rows.flatten(0, 1)).view(*rows.shape[:2], -1)
            chosen = logits.softmax(-1).gather(
                -1, following.to(rows.device).expand(len(tensors), -1)[..., None]
            )
            return chosen[..., 0].sum(-1)

        return value

    def fail(self, error: BaseException) -> None:
        """Hand the error over."""
        if not self.done.done():
            self.done.set_exception(error)


def _lines(lines: int, width: int) -> Batch:
    return Batch(torch.zeros((1, 1), dtype=torch.int64).expand(lines, width), None, (), ())
