"""Handing values over to torch and pandas."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import xarray as xr


def to_torch(array: xr.DataArray) -> Any:
    """The values as a ``torch.Tensor`` of the same dtype, bit for bit; computes them."""
    # This package does without torch; only who asks for a tensor has to have it.
    torch = importlib.import_module("torch")
    values: Any = np.ascontiguousarray(array.values)
    if not values.flags.writeable:
        values = values.copy()
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def to_pandas(array: xr.DataArray) -> pd.DataFrame:
    """The values as a table with one line per row of the corpus; computes them.

    The other axes become columns (a ``MultiIndex`` where there are several); bfloat16 becomes
    float32. Token and document columns are in ``Run.tokens`` and join by row.
    """
    if array.dtype == ml_dtypes.bfloat16:
        array = array.astype(np.float32)
    others = [dimension for dimension in array.dims if dimension != "row"]
    plain = array.reset_coords(drop=True).transpose("row", *others)
    levels = [
        plain.indexes[d] if d in plain.indexes else pd.RangeIndex(plain.sizes[d]) for d in others
    ]
    columns = pd.MultiIndex.from_product(levels, names=others) if len(levels) > 1 else levels[0]
    values = plain.values.reshape(plain.sizes["row"], -1)
    return pd.DataFrame(values, index=plain.indexes["row"], columns=columns)
