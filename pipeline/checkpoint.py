"""The files of a checkpoint: which they are, whether they are whole, their digest, one tensor.

Only safetensors are read. Nothing here loads a model.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import platformdirs
from depthscope.storage.errors import RequestError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100 << 20


def cache_folder(cache: Path | None = None) -> Path:
    """The folder for what can be made again: ``cache``, $DEPTHSCOPE_CACHE or the user's cache."""
    if cache is not None:
        return cache
    chosen = os.environ.get("DEPTHSCOPE_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("depthscope")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of a checkpoint lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""
    bytes: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder.

    Raises
    ------
    RequestError
        the file is missing, is no JSON or is no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"model folder {path.parent} has no {path.name}; give the folder of a Hugging Face "
            "checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path} is no JSON object; fetch the model again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights, in name order.

    Raises
    ------
    RequestError
        there are none, or the index names a file that is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        others = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.gguf")
        )
        also = f" (it has {', '.join(others[:3])})" if others else ""
        raise RequestError(
            f"model folder {folder} has no {SINGLE} or {INDEX}{also}; only safetensors are read: "
            "save the model with save_pretrained(..., safe_serialization=True)"
        )
    names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    if not names:
        raise RequestError(f"{folder / INDEX} names no weights; fetch the model again")
    for name in names:
        if not (folder / name).is_file():
            raise RequestError(
                f"{folder / INDEX} names {name}, which is missing; fetch the model again"
            )
    return [folder / name for name in names]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name, from the files' headers alone.

    Raises
    ------
    RequestError
        a file is missing, cut short or no safetensors file.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        length, header = _header(path)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            found[name] = StoredTensor(
                path, str(entry["dtype"]), tuple(entry["shape"]), 8 + length + start, end - start
            )
    return found


def _header(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("the header is too long")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, AttributeError) as error:
        raise RequestError(
            f"{path} is no whole safetensors file ({error}); fetch the model again"
        ) from error
    if 8 + length + end != size:
        raise RequestError(
            f"{path} has {size} bytes where its header says {8 + length + end}; "
            "fetch the model again"
        )
    return length, dict(header)


def files_digest(files: list[Path], cache: Path | None = None) -> str:
    """blake3 (hex) of the files' bytes, one after the other; read once, then remembered.

    The answer is kept in the cache folder under the files' paths, sizes and modification times.
    """
    stamps = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    key = blake3.blake3(json.dumps(stamps).encode()).hexdigest()
    known = cache_folder(cache) / "digests" / key
    if known.is_file():
        digest = known.read_text().strip()
        if len(digest) == 64:
            return digest
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for path in files:
        hasher.update_mmap(path)
    digest = hasher.hexdigest()
    _remember(known, digest)
    return digest


def _remember(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        # A cache that cannot be written only costs the next run the hashing.
        temporary.unlink(missing_ok=True)


def tokenizer_digest(folder: Path) -> str:
    """blake3 (hex) of the tokenizer's files, with their names; empty when there are none."""
    hasher = blake3.blake3()
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and _is_tokenizer(p.name)]
    for path in files:
        hasher.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest() if files else ""


def _is_tokenizer(name: str) -> bool:
    return (
        name.startswith("tokenizer")
        or name in ("vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json")
        or name in ("added_tokens.json", "chat_template.jinja", "chat_template.json")
        or name.endswith((".model", ".tiktoken"))
    )
