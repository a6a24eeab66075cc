"""What a model is, from its config, the headers of its files and their digests; loads no weight."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import torch
import transformers
from depthscope.storage.errors import RequestError

from .checkpoint import files_digest, read_json, stored_tensors, tokenizer_digest, weight_files
from .quantisation import check_runs_here, quantisation

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""The dtypes a model can be run in, by name."""
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, as recorded in run.json; decides, with the tokens, every number."""

    name: str
    folder: str
    architecture: str
    family: str
    """The config's ``model_type``."""
    layers: int
    hidden: int
    vocabulary: int
    context: int | None
    """Longest input in tokens that the config names; None where it names none."""
    dtype: str
    attention: str
    """The attention implementation that runs, never ``auto``."""
    experts: str | None
    """The experts' implementation of a mixture of experts; None for dense models."""
    parameters: int
    weights_digest: str
    config_digest: str
    tokenizer_digest: str
    """Empty where the folder has no tokenizer."""
    tied_embeddings: bool
    quantisation: str | None = None
    """The scheme of quantised weights; None for plain ones."""


def describe_model(
    folder: Path,
    dtype: str | None = None,
    attention: str = "auto",
    *,
    name: str | None = None,
    trust_remote_code: bool = False,
    cache: Path | None = None,
) -> ModelInfo:
    """What a checkpoint is, from its config, file headers and digests; loads no weights.

    Parameters
    ----------
    folder
        a checkpoint's folder, from `resolve_folder`.
    dtype
        ``bfloat16``, ``float16`` or ``float32``; None or ``auto``: the config's own, or
        that of most stored weights where the config names none.
    attention
        an implementation's name (``sdpa``, ``eager``, ``flash_attention_2``, ...) or
        ``auto``: sdpa where the architecture supports it, else eager.
    name
        what the user called the model; default the folder's name.
    trust_remote_code
        run the checkpoint's own Python files.
    cache
        where the weights' digest is remembered.

    Raises
    ------
    RequestError
        an unknown dtype, architecture or attention implementation, quantised weights
        that transformers does not run here, files that are missing or cut short, or
        code that must be asked for.
    """
    raw = read_json(folder / "config.json")
    config = load_config(folder, trust_remote_code)
    text = config.get_text_config()
    tensors = stored_tensors(folder)
    dtype = resolve_dtype(dtype, text, [tensor.dtype for tensor in tensors.values()])
    check_runs_here(raw, folder, dtype)
    skeleton = build_skeleton(config, attention, trust_remote_code)
    resolved = skeleton.config.get_text_config()
    has_experts = any(getattr(text, key, None) for key in _EXPERT_COUNTS)
    return ModelInfo(
        name=name or folder.resolve().name,
        folder=str(folder),
        architecture=str((getattr(config, "architectures", None) or [type(skeleton).__name__])[0]),
        family=str(text.model_type),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        context=getattr(text, "max_position_embeddings", None),
        dtype=dtype,
        attention=str(resolved._attn_implementation),
        experts=resolved._experts_implementation if has_experts else None,
        parameters=sum(_size(t.shape) for t in tensors.values()),
        weights_digest=files_digest(weight_files(folder), cache),
        config_digest=_config_digest(raw),
        tokenizer_digest=tokenizer_digest(folder),
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        quantisation=quantisation(raw),
    )


_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_NO_NUMBERS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


def _config_digest(raw: dict[str, Any]) -> str:
    kept = {key: value for key, value in raw.items() if key not in _NO_NUMBERS}
    return blake3.blake3(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _size(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def resolve_dtype(asked: str | None, config: Any, stored: list[str]) -> str:
    """The dtype a model runs in: what is asked for, the config's, or that of most stored weights.

    Raises
    ------
    RequestError
        no such dtype can be run.
    """
    if asked not in (None, "auto"):
        if asked not in DTYPES:
            raise RequestError(f"unknown dtype {asked!r}; use one of {', '.join(DTYPES)}")
        return str(asked)
    named = str(getattr(config, "dtype", None)).removeprefix("torch.")
    if named in DTYPES:
        return named
    known = [_STORED[code] for code in stored if code in _STORED]
    return max(DTYPES, key=known.count) if known else "float32"


def load_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The transformers config of a checkpoint's folder.

    Raises
    ------
    RequestError
        it is missing or invalid, of an unknown architecture, or needs Python code
        of the checkpoint that ``trust_remote_code`` does not allow.
    """
    raw = read_json(folder / "config.json")
    model_type = raw.get("model_type")
    known = model_type in transformers.CONFIG_MAPPING
    if not known and "auto_map" in raw and not trust_remote_code:
        raise RequestError(
            f"model folder {folder} needs Python code of its own (model type {model_type!r}); "
            "read that code, then add --trust-remote-code"
        )
    if not known and "auto_map" not in raw:
        raise RequestError(
            f"{folder / 'config.json'} names model type {model_type!r}, which transformers "
            f"{transformers.__version__} does not know; install a version that does"
        )
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise RequestError(
            f"{folder / 'config.json'} is no valid {model_type} config: {one_line(error)}"
        ) from error


def build_skeleton(
    config: Any, attention: str, trust_remote_code: bool = False, *, with_head: bool = False
) -> Any:
    """The model on the meta device: its modules and resolved settings, no weights.

    ``with_head`` builds the language model instead of its base.

    Raises
    ------
    RequestError
        the architecture has no base model, or not this attention implementation.
    """
    implementation = None if attention == "auto" else attention
    factory = transformers.AutoModelForCausalLM if with_head else transformers.AutoModel
    try:
        with quiet(), torch.device("meta"):
            return factory.from_config(
                config, attn_implementation=implementation, trust_remote_code=trust_remote_code
            )
    except (ValueError, ImportError) as error:
        raise RequestError(
            f"model type {config.model_type!r} cannot be built with attention {attention!r}: "
            f"{one_line(error)}; use --attention auto or eager"
        ) from error


def one_line(error: BaseException) -> str:
    """An error's message on one line, for a RequestError's own."""
    return " ".join(str(error).split())[:300]


class _Quiet:
    """How many blocks want quiet, in any thread; the settings are put back when none is left."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.level, self.bars = 0, False


_QUIET = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and load reports out of the user's terminal."""
    log = transformers.utils.logging
    with _QUIET.lock:
        _QUIET.blocks += 1
        if _QUIET.blocks == 1:
            _QUIET.level, _QUIET.bars = log.get_verbosity(), log.is_progress_bar_enabled()
            log.set_verbosity_error()
            log.disable_progress_bar()
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.blocks -= 1
            if not _QUIET.blocks:
                log.set_verbosity(_QUIET.level)
                if _QUIET.bars:
                    log.enable_progress_bar()
