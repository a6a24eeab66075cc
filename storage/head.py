"""The head of a model in a store: final norm and unembedding, as numbers and a few settings.

``head.safetensors`` holds the arrays, ``head.json`` says how they are used, so that anybody can
form logits from a stored activation without the model's code:

    logits = soft_cap(scale · (unembedding · norm(h) + bias)),  norm(h) = weight · n(h) + norm_bias

where n divides h by its root mean square (``rmsnorm``) or subtracts the mean and divides by the
standard deviation (``layernorm``), with ``epsilon`` inside the root, and
soft_cap(x) = cap · tanh(x / cap) where there is a cap. A norm weight that a family stores as
1 + w is stored here as the whole.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .atomic import sync_folder, write_json
from .errors import Damage, RequestError
from .layout import StorePaths

NormKind = Literal["rmsnorm", "layernorm"]
_FORMAT = 1
_ARRAYS = {
    "weight": "norm.weight",
    "norm_bias": "norm.bias",
    "unembedding": "unembedding.weight",
    "bias": "unembedding.bias",
}


@dataclass(frozen=True, eq=False)
class Head:
    """Final norm and unembedding of a model with hidden size d and V tokens."""

    norm: NormKind
    epsilon: float
    weight: NDArray[Any]
    """(d,), the factor after normalising."""
    unembedding: NDArray[Any]
    """(V, d)."""
    norm_bias: NDArray[Any] | None = None
    """(d,)."""
    bias: NDArray[Any] | None = None
    """(V,)."""
    soft_cap: float | None = None
    scale: float = 1.0
    """Factor of the logits before the soft cap."""

    def save(self, root: Path) -> None:
        """Write ``head.safetensors`` and ``head.json`` into a store, each whole or not at all."""
        paths = StorePaths(root)
        arrays = {
            name: np.ascontiguousarray(getattr(self, field))
            for field, name in _ARRAYS.items()
            if getattr(self, field) is not None
        }
        write_json(
            paths.head_config,
            {
                "format": _FORMAT,
                "norm": self.norm,
                "epsilon": self.epsilon,
                "soft_cap": self.soft_cap,
                "scale": self.scale,
            },
        )
        temporary = paths.head.with_name(f".{paths.head.name}.{secrets.token_hex(6)}")
        try:
            save_file(arrays, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(paths.head)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(root)

    @classmethod
    def load(cls, root: Path) -> Head:
        """Read a store's head.

        Raises
        ------
        RequestError
            the store has none (it was made with --no-head), or a newer version wrote it.
        Damage
            the files cannot be read.
        """
        paths = StorePaths(root)
        try:
            settings = json.loads(paths.head_config.read_text())
            arrays = load_file(paths.head)
        except FileNotFoundError as error:
            raise RequestError(
                f"store {root} has no {Path(error.filename).name}; run extract without --no-head"
            ) from None
        except (OSError, ValueError, SafetensorError) as error:
            raise Damage(f"the head of store {root} cannot be read: {error}") from error
        if settings["format"] > _FORMAT:
            raise RequestError(f"the head of store {root} was written by a newer depthscope")
        fields = {field: arrays.get(name) for field, name in _ARRAYS.items()}
        return cls(
            norm=settings["norm"],
            epsilon=settings["epsilon"],
            soft_cap=settings["soft_cap"],
            scale=settings["scale"],
            **fields,
        )
