"""Engines and the command line; the only package that knows Ray."""

from .extract import Extraction, extract
from .spec import ExtractSpec

__all__ = ["ExtractSpec", "Extraction", "extract"]
