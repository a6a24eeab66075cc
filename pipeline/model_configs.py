"""Configs of models by name: published ones that come with the package, folders, the hub.

Planning needs a config and nothing else, so that a run can be costed before a single weight has
been fetched. The published configs (`published_configs.json`) hold the fields that decide shapes
and attention, as their repositories name them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import transformers
from depthscope.storage.errors import RequestError

from .checkpoint import read_json, stored_tensors
from .demo_model import demo_folder
from .description import load_config, one_line, resolve_dtype
from .hub import hub_folder
from .quantisation import quantisation, refuse_quantised

_QUANTISED = "a copy of the weights in 16 bits: they are published quantised with {}"


@dataclass(frozen=True)
class NamedConfig:
    """A model's config and where it came from.

    Attributes
    ----------
    name
        What to call the model.
    config
        The transformers config of its decoder of text.
    dtype
        The dtype it runs in unless another is asked for.
    folder
        Its folder; None for a published config.
    note
        What the reader must know about the published weights; empty where there is nothing.
    """

    name: str
    config: Any
    dtype: str
    folder: Path | None
    note: str = ""


def published_names() -> list[str]:
    """Names of the configs that come with the package."""
    return list(_published())


def find_config(
    model: str, dtype: str | None = None, *, trust_remote_code: bool = False
) -> NamedConfig:
    """The config of a model, without its weights.

    Parameters
    ----------
    model
        a folder with a config.json; a published name such as ``llama-3.1-405b`` or its repository
        on the hub (upper and lower case are the same); ``demo``; or another name on the hub, of
        which the small files alone are fetched.
    dtype
        the dtype asked for; None: the model's own.
    trust_remote_code
        run the checkpoint's own Python files.

    Raises
    ------
    RequestError
        there is no such config, its architecture is unknown, or its weights are quantised.
    """
    path = Path(model).expanduser()
    if not path.is_dir() and (entry := _entry(model)) is not None:
        name, known = entry
        raw = known["config"]
        config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
        note = _QUANTISED.format(known["published_in"]) if "published_in" in known else ""
        return NamedConfig(name, config, resolve_dtype(dtype, config, []), None, note)
    folder = path if path.is_dir() else _folder(model, trust_remote_code)
    refuse_quantised(
        quantisation(read_json(folder / "config.json")),
        folder,
        "whose costs the plan does not know",
    )
    config = load_config(folder, trust_remote_code).get_text_config()
    named = getattr(config, "dtype", None) or dtype
    weights = any(folder.glob("*.safetensors"))
    stored = [t.dtype for t in stored_tensors(folder).values()] if weights and not named else []
    name = model if folder is not path else folder.resolve().name
    return NamedConfig(name, config, resolve_dtype(dtype, config, stored), folder)


def _folder(model: str, trust_remote_code: bool) -> Path:
    if model == "demo":
        return demo_folder()
    if model.count("/") == 1 and not model.startswith((".", "/")):
        try:
            return hub_folder(model, trust_remote_code, weights=False)
        except RequestError as error:
            raise RequestError(f"{one_line(error)}; {_known()}") from error
    raise RequestError(f"no model folder {model}; {_known()}")


def _known() -> str:
    return f"configs that need no folder: demo, {', '.join(published_names())}"


def _entry(model: str) -> tuple[str, dict[str, Any]] | None:
    wanted = model.lower()
    for name, entry in _published().items():
        if wanted == name or wanted in (known.lower() for known in entry["repositories"]):
            return name, entry
    return None


def _published() -> dict[str, Any]:
    text = files(__package__).joinpath("published_configs.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
