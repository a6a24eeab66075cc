"""What the layers of a model cost on this machine: real layers of its config, random weights.

The body is built without weights, and as many of its first layers are filled with random numbers as
show every kind of layer and do not fit a processor's cache. They then run over micro-batches made
from the corpus's own lengths, exactly as a worker runs them, and the time between two points of
the stream is the time of a layer. Matrix products are measured besides, alone, in every shape that
the layers have; they stand in for layers that are too large to be held here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from accelerate import init_empty_weights
from depthscope.storage.errors import RequestError
from torch import nn

from .batches import Batch, Piece, micro_batches, windows
from .calibration import ModelTimes
from .calibration_parts import lens_seconds, plane_seconds, product_rate, statistics_seconds
from .capture import capture
from .costs import LayerCosts, ModelCosts
from .description import DTYPES, quiet
from .families import Family, candidates
from .packing import attention_by_segment, can_attend_by_segment
from .task_windows import WINDOW_BYTES
from .workload import CorpusSize, Selection

#: Layers are filled until they exceed this, so that none stays in a processor's cache.
_LEAST_BYTES = 512 << 20
_MOST_BATCHES = 4
_VOCABULARY = 1024


def measure_model(
    config: Any, costs: ModelCosts, corpus: CorpusSize, selection: Selection, seconds: float
) -> ModelTimes:
    """Measure a model's layers with this process's threads.

    Parameters
    ----------
    config
        its transformers config.
    corpus, selection
        what micro-batches are made of.
    seconds
        about how long the layers may take; at least one micro-batch is measured, after another
        that warms up.

    Raises
    ------
    RequestError
        the architecture is unknown.
    """
    batches = sample_batches(costs, corpus, selection)
    rows = max(batch.input_ids.numel() for batch in batches)
    with torch.inference_mode():
        body = _Body(config, costs)
        products = body.products(rows)
        times = body.run(batches, seconds) if body.held else None
        lens = lens_seconds(costs) if selection.lens_rows else 0.0
        plane, statistics = plane_seconds(costs, selection, rows), statistics_seconds(costs, rows)
    layers = times.layers if times else _from_products(costs, corpus, products)
    return ModelTimes(
        layers,
        times.frame if times else 0.0,
        plane,
        statistics,
        lens,
        products,
        body.held,
    )


def sample_batches(costs: ModelCosts, corpus: CorpusSize, selection: Selection) -> list[Batch]:
    """A few micro-batches as the corpus's documents form them, long and short ones."""
    planes = max(1, selection.planes(0, len(costs.layers)))
    window = max(4 * selection.batch_tokens, WINDOW_BYTES // (planes * costs.hidden * 4))
    pieces: list[Piece] = []
    rows = 0
    wanted = min(window, selection.task_rows, corpus.rows)
    while rows < wanted:
        length = corpus.lengths[len(pieces) % len(corpus.lengths)]
        ids = np.arange(rows, rows + length) % min(_VOCABULARY, costs.vocabulary)
        pieces.append(Piece(len(pieces), rows, ids.astype(np.int32)))
        rows += length
    batches: list[Batch] = []
    for part in windows(pieces, window):
        batches += micro_batches(part, selection.batch_tokens, pack=selection.packed, pad_id=0)
    step = max(1, len(batches) // _MOST_BATCHES)
    return batches[step // 2 :: step][:_MOST_BATCHES]


@dataclass(frozen=True)
class _Times:
    layers: tuple[float, ...]
    frame: float


class _Body:
    """A body whose first layers have random weights, in the model's own shapes and dtype."""

    def __init__(self, config: Any, costs: ModelCosts) -> None:
        self._costs = costs
        text = config.get_text_config()
        with quiet(), init_empty_weights(include_buffers=False):
            self._model: Any = transformers.AutoModel.from_config(
                text, dtype=DTYPES[costs.dtype], attn_implementation=costs.attention
            )
        self._model.eval()
        parallel = bool(getattr(text, "use_parallel_residual", False))
        layers = len(costs.layers)
        self._family: Family = candidates(self._model, costs.family, layers, parallel)[0]
        self._blocks = self._family.blocks(self._model)
        self.held = _layers_to_hold(costs)
        if self.held:
            self._cut()

    def _cut(self) -> None:
        """Leave the held layers only, with random weights; the vocabulary is made small."""
        model, parent, name = self._model, *self._family.layers.rpartition(".")[::2]
        kept = nn.ModuleList(self._blocks[: self.held])
        setattr(model.get_submodule(parent), name, kept)
        embedding = nn.Embedding(_VOCABULARY, self._costs.hidden, dtype=DTYPES[self._costs.dtype])
        model.set_input_embeddings(embedding)
        model.config.num_hidden_layers = self.held
        draw = torch.Generator().manual_seed(0)
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    values = torch.empty(parameter.shape, dtype=parameter.dtype)
                    values.normal_(0.0, 0.02, generator=draw)
                    module._parameters[key] = nn.Parameter(values, requires_grad=False)

    def products(self, rows: int) -> dict[str, float]:
        """GFLOP/s of every shape of the layers' linear maps at so many rows."""
        dtype, found = DTYPES[self._costs.dtype], dict[str, float]()
        for block in _one_of_each(self._costs, self._blocks):
            for parameter in block.parameters():
                if parameter.ndim < 2:
                    continue
                out, inside = int(parameter.shape[-2]), int(parameter.shape[-1])
                name = f"{out}x{inside}"
                if name not in found:
                    found[name] = product_rate(rows, out, inside, dtype)
        return found

    def run(self, batches: Sequence[Batch], seconds: float) -> _Times:
        """Seconds a row of every layer, and of everything before and after them."""
        started = time.perf_counter()
        self._stamps(batches[0])
        once = (time.perf_counter() - started) * len(batches)
        repeats = max(1, min(5, round(seconds / max(once, 1e-9))))
        rounds: list[list[float]] = []
        for _ in range(repeats):
            stamps = [self._stamps(batch) for batch in batches]
            rounds.append([sum(values) for values in zip(*stamps, strict=True)])
        tokens = sum(batch.tokens for batch in batches)
        # Whatever else the machine does only adds: a low quantile is what it can do.
        middle = np.quantile(np.array(rounds), 0.25, axis=0) / tokens
        held, kinds = middle[1:-1], self._costs.layers
        by_kind: dict[LayerCosts, list[float]] = {}
        for kind, value in zip(kinds, held, strict=False):
            by_kind.setdefault(kind, []).append(float(value))
        layers = tuple(
            float(held[n]) if n < self.held else float(np.mean(by_kind[kind]))
            for n, kind in enumerate(kinds)
        )
        return _Times(layers, float(middle[0] + middle[-1]))

    def _stamps(self, batch: Batch) -> list[float]:
        """Seconds before the first layer, of each layer, and after the last."""
        stamps = [time.perf_counter()]
        config, positions = self._model.config, batch.position_ids
        packed = can_attend_by_segment(config, positions)
        given = {} if positions is None else {"position_ids": positions}
        with (
            attention_by_segment(config, positions) if packed else nullcontext(),
            capture(self._model, self._family, lambda *_: stamps.append(time.perf_counter()), None),
        ):
            self._model(input_ids=batch.input_ids, use_cache=False, **given)
        stamps.append(time.perf_counter())
        return [after - before for before, after in pairwise(stamps)]


def _layers_to_hold(costs: ModelCosts) -> int:
    """So many first layers as show every kind and exceed a cache; 0 where memory is too small."""
    room = psutil.virtual_memory().available // 2
    unseen, size = set(costs.layers), 0
    for number, layer in enumerate(costs.layers, 1):
        unseen.discard(layer)
        size += layer.parameters * costs.itemsize
        if size > room:
            return 0
        if not unseen and size >= _LEAST_BYTES:
            return number
    return len(costs.layers)


def _one_of_each(costs: ModelCosts, blocks: Sequence[nn.Module]) -> Iterator[nn.Module]:
    seen: set[LayerCosts] = set()
    for kind, block in zip(costs.layers, blocks, strict=False):
        if kind not in seen:
            seen.add(kind)
            yield block


def _from_products(
    costs: ModelCosts, corpus: CorpusSize, products: dict[str, float]
) -> tuple[float, ...]:
    """Seconds a row of layers that cannot be held, at the mean rate of their products."""
    if not products:
        raise RequestError(f"{costs.name}: its layers have no matrix products to measure")
    rate = 1e9 * float(np.mean(list(products.values())))
    return tuple(flops / rate for flops in costs.layer_flops(corpus.document_tokens))
