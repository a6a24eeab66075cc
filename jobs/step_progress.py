"""Progress of an analysis on stderr, in steps: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

#: Seconds between plain lines.
_EVERY = 10.0


class Steps:
    """Takes the steps done and the steps there are, of one analysis after the other.

    A bar goes when its analysis ends. Without a terminal nothing is printed in the first ten
    seconds of an analysis, which most do not need.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show how far the analysis is."""
        if sys.stderr.isatty():
            self._move(done, total)
        elif time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            print(f"{done} of {total} steps", file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        """Print a line; what comes after it is another analysis or its end."""
        self.close()
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _move(self, done: int, total: int) -> None:
        if self._bar is None or self._bar.total != total or done < self._bar.n:
            self.close()
            self._bar = tqdm(total=total, unit=" steps", file=sys.stderr, dynamic_ncols=True,
                             leave=False)  # fmt: skip
        self._bar.n = done
        self._bar.refresh()
