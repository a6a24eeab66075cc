"""Files that appear whole or not at all, and never replace another unasked.

Everything is written under a temporary name, flushed to the disk and then given its real name by
``link`` (fails when the name is taken) or ``rename`` (for files that may be replaced); the folder
is flushed after it, so that the name survives a power cut as well.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, final: Path) -> bool:
    """Give a finished, flushed file its real name unless that name is taken.

    Returns
    -------
    bool
        False when ``final`` exists already; it is then untouched. ``temporary`` is gone either way.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(final.parent)
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write or replace a small file atomically."""
    temporary = _flushed(path, content)
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write or replace a small JSON file atomically."""
    write_bytes(path, encode_json(value))


def create_json(path: Path, value: Any) -> bool:
    """Write a small JSON file unless it exists; says whether it was this call that created it."""
    return publish(_flushed(path, encode_json(value)), path)


def encode_json(value: Any) -> bytes:
    """JSON as this project writes it: sorted keys, readable, one newline at the end."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _flushed(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
