"""The registered Zarr v3 data type ``bfloat16`` for zarr-python, which does not know it by itself.

Importing this module is enough, and installing the project is: it declares the entry point
``zarr.data_type``, and one of ``zarr.buffer`` (zarr's own buffer under our name), because
zarr-python up to 3.1.6 collects the first kind without ever loading it. Values keep their bits:
nothing is converted on the way in or out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.buffer.cpu import Buffer
from zarr.core.dtype.common import DataTypeValidationError, HasEndianness, HasItemSize
from zarr.core.dtype.npy.common import FloatLike, float_from_json_v3, float_to_json_v3
from zarr.core.dtype.wrapper import ZDType
from zarr.dtype import data_type_registry

if TYPE_CHECKING:
    from zarr.core.common import JSON, ZarrFormat
    from zarr.core.dtype.common import DTypeJSON
    from zarr.core.dtype.wrapper import TBaseDType

__all__ = ["NATIVE", "BFloat16", "Buffer"]

NATIVE: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[np.dtype[Any], Any], HasEndianness, HasItemSize):
    """``bfloat16`` as ``ml_dtypes.bfloat16`` in numpy; Zarr format 3 only."""

    dtype_cls: ClassVar[type[np.dtype[Any]]] = type(NATIVE)
    _zarr_v3_name: ClassVar[Literal["bfloat16"]] = "bfloat16"

    @property
    def item_size(self) -> int:
        """Bytes of one value."""
        return 2

    @classmethod
    def from_native_dtype(cls, dtype: TBaseDType) -> Self:
        """Wrap ``ml_dtypes.bfloat16``; any other data type raises DataTypeValidationError."""
        if dtype == NATIVE:
            return cls()
        raise DataTypeValidationError(f"{dtype} is not bfloat16")

    def to_native_dtype(self) -> np.dtype[Any]:
        """The numpy data type."""
        # ml_dtypes has no byte-swapped bfloat16; such an array would be read wrongly in silence.
        if self.endianness != "little":
            raise DataTypeValidationError("bfloat16 is supported in little-endian order only")
        return NATIVE

    @classmethod
    def _from_json_v2(cls, data: DTypeJSON) -> NoReturn:
        raise DataTypeValidationError("Zarr format 2 has no bfloat16")

    @classmethod
    def _from_json_v3(cls, data: DTypeJSON) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not bfloat16")

    def to_json(self, zarr_format: ZarrFormat) -> Any:
        """The name in the metadata."""
        if zarr_format == 3:
            return self._zarr_v3_name
        raise ValueError("Zarr format 2 has no bfloat16")

    def _check_scalar(self, data: object) -> TypeGuard[FloatLike]:
        return isinstance(data, FloatLike | ml_dtypes.bfloat16)

    def cast_scalar(self, data: object) -> Any:
        """A number as bfloat16; anything else raises TypeError."""
        if self._check_scalar(data):
            return NATIVE.type(data)
        raise TypeError(f"{data!r} is no number that bfloat16 could hold")

    def default_scalar(self) -> Any:
        """Zero."""
        return NATIVE.type(0)

    def from_json_scalar(self, data: JSON, *, zarr_format: ZarrFormat) -> Any:
        """A fill value as it stands in the metadata: a number, NaN, Infinity, or bits in hex."""
        if isinstance(data, str) and data.startswith("0x"):
            return np.uint16(int(data, 16)).view(NATIVE)
        if isinstance(data, str | int | float):
            return NATIVE.type(float_from_json_v3(data))
        raise TypeError(f"{data!r} is no bfloat16 fill value")

    def to_json_scalar(self, data: object, *, zarr_format: ZarrFormat) -> float | str:
        """A fill value for the metadata."""
        return float_to_json_v3(np.float32(self.cast_scalar(data)))


data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
