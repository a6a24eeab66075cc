"""The store: layout, writing, reading, commits and tables; knows neither models nor engines.

Importing it makes ``bfloat16`` known to zarr-python.
"""

from . import bfloat16 as _bfloat16

__all__: list[str] = []

del _bfloat16
