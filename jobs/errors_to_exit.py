"""From errors to exit codes and one clear line on stderr."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from depthscope.storage.errors import RequestError, Stopped, WorkFailed
from pydantic import ValidationError

SUCCESS, FAILED, WRONG_REQUEST, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
#: What to do about a disk that refuses.
_ADVICE = {
    errno.ENOSPC: "make room, or choose another --out",
    errno.EDQUOT: "make room, or choose another --out",
    errno.EROFS: "choose another --out",
    errno.EACCES: "ask its owner for the right (ls -l shows who has it), or name another",
}


@contextmanager
def exit_codes(leave: Callable[[int], None] = sys.exit) -> Iterator[None]:
    """Turn what the block raises into an exit code; anything unforeseen keeps its traceback."""
    try:
        yield
    except RequestError as error:
        say(str(error))
        leave(WRONG_REQUEST)
    except ValidationError as error:
        say(_validation(error))
        leave(WRONG_REQUEST)
    except Stopped as error:
        say(f"{error}; run the same command again to resume")
        leave(INTERRUPTED if "SIGINT" in str(error) else RESUMABLE)
    except WorkFailed as error:
        say(str(error))
        leave(FAILED)
    except KeyboardInterrupt:
        say("interrupted; run the same command again to resume")
        leave(INTERRUPTED)
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        say(f"{error.filename or 'the disk'}: {error.strerror}: {_ADVICE[error.errno]}")
        leave(FAILED)


def say(text: str) -> None:
    """One line on stderr."""
    print("depthscope: " + " ".join(text.split()), file=sys.stderr, flush=True)


def _validation(error: ValidationError) -> str:
    first = error.errors()[0]
    name = "--" + ".".join(str(part) for part in first["loc"]).replace("_", "-")
    return f"{name} {first.get('input')!r}: {first['msg']}"
