"""Data sets by name, through the optional ``datasets`` library."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

from depthscope.storage.errors import RequestError

from .readers import Record

_PREFIX = "hf:"


def is_hub_data(name: str) -> bool:
    """Whether a name that is no file means a data set: hf:NAME, or NAME where datasets is there."""
    if name.startswith(_PREFIX):
        return True
    could_be = name.count("/") <= 1 and not any(mark in name for mark in "*?[.\\")
    return could_be and importlib.util.find_spec("datasets") is not None


def read_hub_data(name: str) -> Iterator[Record]:
    """Stream ``hf:NAME[:CONFIG[:SPLIT]]``; the split is ``train`` unless given.

    Raises
    ------
    RequestError
        Where the library is absent or the data set cannot be loaded.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise RequestError(
            f"{name}: data sets by name need the datasets library; pip install datasets, "
            "or give a file"
        ) from None
    dataset, _, rest = name.removeprefix(_PREFIX).partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(
            dataset, config or None, split=split or "train", streaming=True
        )
    except Exception as error:
        # The library raises many kinds: no network, no such set, no such split.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(f"{name}: the data set cannot be loaded ({reason})") from error
    for number, fields in enumerate(rows, 1):
        yield Record(name, number, "record", fields)
