"""Engines and the command line; the only package that knows Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .environment import set_environment

set_environment()

if TYPE_CHECKING:
    from .effects_run import Intervened, intervene
    from .extraction import Extraction, extract
    from .intervene_spec import InterveneSpec
    from .spec import ExtractSpec

__all__ = ["ExtractSpec", "Extraction", "InterveneSpec", "Intervened", "extract", "intervene"]

_HOMES = {
    "ExtractSpec": "spec",
    "Extraction": "extraction",
    "InterveneSpec": "intervene_spec",
    "Intervened": "effects_run",
    "extract": "extraction",
    "intervene": "effects_run",
}


def __getattr__(name: str) -> Any:
    # torch and transformers take four seconds to import, which no command that only reads a store
    # should wait for.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"depthscope.jobs has no {name}")
