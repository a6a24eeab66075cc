"""Changing what attention and MLP add, for some lines of a batch and some of their positions.

The hooks stand ahead of those of `capture`, so that what is captured is what the stream gets. They
are removed on leaving, whatever happens inside: the model is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .families import Family
from .interventions import Intervention


@dataclass(frozen=True)
class Edit:
    """An intervention on one line of a batch.

    Attributes
    ----------
    line
        Its number in the batch.
    change
        What is done.
    acts
        bool (width,): where.
    replacement
        (width, d) or (d,), what ``mean`` and ``patch`` put in place; None for the others.
    """

    line: int
    change: Intervention
    acts: Tensor
    replacement: Tensor | None = None

    def of(self, value: Tensor) -> Tensor:
        """What the part adds to the line, (width, d), after the edit."""
        changed = self.change.apply(value, self.replacement)
        return torch.where(self.acts.to(value.device)[:, None], changed.to(value.dtype), value)


@contextmanager
def edited(block: nn.Module, family: Family, edits: Sequence[Edit]) -> Iterator[None]:
    """While open, the layer's attention and MLP add what the edits make of it."""
    modules = {"attention": family.attention_of, "mlp": family.mlp_of}
    handles = []
    try:
        for part, module_of in modules.items():
            if own := [edit for edit in edits if edit.change.part == part]:
                handles.append(module_of(block).register_forward_hook(_hook(own)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(edits: Sequence[Edit]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        value = output if isinstance(output, Tensor) else output[0]
        changed = value.clone()
        for edit in edits:
            changed[edit.line] = edit.of(changed[edit.line])
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    return hook
