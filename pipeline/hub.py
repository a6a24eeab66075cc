"""Checkpoints from the Hugging Face hub: safetensors, configs and tokenizers only."""

from __future__ import annotations

from pathlib import Path

from depthscope.storage.errors import RequestError
from huggingface_hub import snapshot_download

_WEIGHTS = "*.safetensors"
_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def hub_folder(model: str, trust_remote_code: bool = False, *, weights: bool = True) -> Path:
    """The local snapshot of ``owner/name`` or ``owner/name@revision``, fetched where needed.

    Files below the top folder (other formats of the same weights) are left out; Python files are
    fetched only with ``trust_remote_code``, the weights only with ``weights``.

    Raises
    ------
    RequestError
        the name is unknown, needs a login, or the hub cannot be reached and no
        earlier snapshot is on this machine.
    """
    name, _, revision = model.partition("@")
    wanted = [*_FILES, *([_WEIGHTS] if weights else []), *(["*.py"] if trust_remote_code else [])]
    try:
        folder = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=wanted,
            ignore_patterns=["*/*"],
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"model {model!r} is no local folder and cannot be had from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); give a local folder, or 'demo'"
        ) from error
    return Path(folder)
