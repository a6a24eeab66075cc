"""A new folder that appears whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RequestError

#: linux/fs.h and fcntl.h: let two names change places; paths are relative to the current folder.
_EXCHANGE, _AT_FDCWD = 2, -100


@contextmanager
def placed(out: Path) -> Iterator[Path]:
    """A folder under a temporary name, renamed to ``out`` when the block ends well.

    Raises
    ------
    RequestError
        ``out`` holds something, or cannot be written; nothing is left behind.
    """
    out = Path(os.path.abspath(out))
    place = out.parent / f".{out.name}.preparing-{secrets.token_hex(4)}"
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RequestError(f"{out} exists and is no store: choose another place, or empty it")
        place.mkdir(parents=True)
        yield place
        os.rename(place, out)
    except OSError as error:
        raise RequestError(f"{out} cannot be written: {error}: choose another place") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Let two folders of one file system change names, in one step that cannot be interrupted.

    Returns
    -------
    bool
        False where the file system or the kernel cannot; nothing has changed then.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return bool(function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)
