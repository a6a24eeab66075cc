"""Tensors of a checkpoint under the names, shapes and dtypes that transformers gives them.

transformers 5 converts checkpoints as it loads them: it renames, splits and fuses (the experts of a
mixture become one tensor). Its own machinery does so here too, on the tensors of one part of the
model at a time, so that a part loaded alone equals that part of the whole model bit for bit.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from depthscope.storage.errors import RequestError, WorkFailed
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from .description import quiet
from .joined_tensors import joined_patterns, read_joined
from .lazy_tensors import LazyTensor, ShapeOnly
from .weight_reader import WeightReader

Rows = slice
"""Which rows of a stored tensor, along its first axis, are read."""
ALL = slice(None)


class Source(NamedTuple):
    """What a tensor of the checkpoint becomes."""

    target: str
    """The tensor of the model that is made of it (the first, where there are several)."""
    pattern: str | None
    """Which input of a conversion it is; None where it is taken as it is."""


class Conversion:
    """From a checkpoint's tensors to those of a model, part by part; any thread may load.

    Parameters
    ----------
    model
        The whole model, its weights on the meta device.
    reader
        The checkpoint.
    dtype
        The dtype the model runs in.

    Attributes
    ----------
    sources
        By the checkpoint's name of a tensor, in the order in which transformers takes them; those
        that the model has no use for are left out.
    """

    def __init__(self, model: Any, reader: WeightReader, dtype: torch.dtype) -> None:
        self._reader, self._dtype = reader, dtype
        self._dtype_plan = model._get_dtype_plan(dtype)
        self._mapping = get_model_conversion_mapping(model)
        self._may_lack = model._keys_to_ignore_on_load_missing or ()
        self._joined = joined_patterns(self._mapping)
        self.sources = self._sources(model)

    def _sources(self, model: Any) -> dict[str, Source]:
        mapping = copy.deepcopy(self._mapping)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        prefix, wanted = model.base_model_prefix, model.state_dict()
        found = {}
        for name in sorted(self._reader.tensors, key=dot_natural_key):
            source = Source(*rename_source_key(name, renamings, converters, prefix, wanted))
            if source.target not in wanted and name in wanted:
                source = Source(*rename_source_key(name, [], [], prefix, wanted))
            if source.target in wanted:
                found[name] = source
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in which a tensor of the checkpoint is stored."""
        return self._reader.tensors[name].shape

    def check(self, part: Any, names: Mapping[str, Rows]) -> set[str]:
        """Try names, shapes and dtypes of a part without reading it.

        Parameters
        ----------
        part
            The model, or one that holds some of its modules under their names; its tensors become
            empty ones on the meta device, of the dtypes that they will have.
        names
            The checkpoint's tensors for it, and which rows of them.

        Returns
        -------
        set of str
            Tensors of the part that the checkpoint lacks.

        Raises
        ------
        RequestError
            A tensor's shape is not what the config asks for.
        """
        state = {name: ShapeOnly(self._reader, name, rows) for name, rows in names.items()}
        found = self._convert(part, state, torch.device("meta"))
        folder = self._reader.folder
        for name, stored, wanted in sorted(found.mismatched_keys):
            raise RequestError(
                f"the weights in {folder} do not fit its config: {name} has shape "
                f"{tuple(stored)} where config.json asks for {tuple(wanted)}; fetch it again"
            )
        for name, error in sorted(found.conversion_errors.items()):
            raise RequestError(
                f"the weights in {folder} do not fit its config: {name} cannot be made of them "
                f"({_last_line(error)}); fetch it again"
            )
        buffers = {name for name, _ in part.named_buffers()}
        return {name for name in found.missing_keys if not (name in buffers and self._may(name))}

    def _may(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self._may_lack)

    def load(self, part: Any, names: Mapping[str, Rows], device: torch.device) -> None:
        """Read (rows of) these tensors and put what is made of them into the part, on a device.

        On a GPU the copies run in the calling thread's current stream, and are done on return.

        Raises
        ------
        WorkFailed
            A file can no longer be read, or no longer fits.
        """
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        state = {
            name: LazyTensor(self._reader, name, rows, stream, self._is_joined(name))
            for name, rows in names.items()
        }
        with torch.inference_mode(False):
            found = self._convert(part, state, device, join=True)
        wrong = {name: f"shape {tuple(shape)}" for name, shape, _ in found.mismatched_keys}
        for name, error in (wrong | found.conversion_errors).items():
            raise WorkFailed(
                f"{name} of {self._reader.folder} cannot be loaded: {_last_line(error)}"
            )
        if stream is not None:
            stream.synchronize()

    def _is_joined(self, name: str) -> bool:
        return self.sources[name].pattern in self._joined

    def _convert(
        self, part: Any, state: dict[str, Any], device: torch.device, join: bool = False
    ) -> Any:
        mapping = copy.deepcopy(self._mapping)
        if join:
            read_joined(mapping)
        settings = LoadStateDictConfig(
            device_map={"": device},
            dtype=self._dtype,
            dtype_plan=self._dtype_plan,
            weight_mapping=mapping,
        )
        with quiet():
            return convert_and_load_state_dict_in_model(part, state, settings)[0]


def refuse_missing(folder: Path, missing: set[str]) -> None:
    """Raise RequestError, naming some of them, if there are tensors that the weights lack."""
    if missing:
        names = sorted(missing, key=dot_natural_key)
        raise RequestError(
            f"the weights in {folder} lack {len(names)} tensors that its config asks for "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); fetch it again"
        )


def _last_line(error: str) -> str:
    return " ".join(error.strip().splitlines()[-1].split())[:200]
