"""Engines and the command line; the only package that knows Ray."""

from .environment import set_environment

set_environment()

from .extract import Extraction, extract  # noqa: E402
from .intervene import Intervened, intervene  # noqa: E402
from .intervene_spec import InterveneSpec  # noqa: E402
from .spec import ExtractSpec  # noqa: E402

__all__ = ["ExtractSpec", "Extraction", "InterveneSpec", "Intervened", "extract", "intervene"]
