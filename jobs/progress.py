"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tqdm import tqdm

#: Seconds between plain lines.
_EVERY = 10.0


class Progress(Protocol):
    """What long work reports to."""

    def start(self, total: int, done: int) -> None:
        """Rows in all, and those that earlier runs committed."""

    def tick(self, rows: int, seconds: Mapping[str, float]) -> None:
        """Rows that this run has finished, and where the workers' time went."""

    def message(self, text: str) -> None:
        """One line for the reader."""

    def close(self) -> None:
        """The work has ended."""


class Silent:
    """No progress at all."""

    def start(self, total: int, done: int) -> None:
        """Nothing."""

    def tick(self, rows: int, seconds: Mapping[str, float]) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Bar:
    """A bar with rows, rows/s, time left and the split of the workers' time."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, total: int, done: int) -> None:
        """Draw the bar."""
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=" rows",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} rows "
            "[{elapsed}<{remaining}, {rate_fmt}] {postfix}",
        )

    def tick(self, rows: int, seconds: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        self._bar.n = min(self._bar.initial + rows, self._bar.total)
        self._bar.set_postfix_str(split(seconds), refresh=False)
        self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Lines:
    """One plain line every ten seconds."""

    def __init__(self) -> None:
        self._total = self._done = 0
        self._started = self._last = time.monotonic()
        self._rows, self._seconds = 0, dict[str, float]()

    def start(self, total: int, done: int) -> None:
        """Say how much there is."""
        self._total, self._done = total, done
        self._started = self._last = time.monotonic()
        earlier = f", {done} committed before" if done else ""
        self.message(f"{total} rows{earlier}")

    def tick(self, rows: int, seconds: Mapping[str, float]) -> None:
        """Print a line when ten seconds have passed."""
        self._rows, self._seconds = rows, dict(seconds)
        if time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        rate = self._rows / max(time.monotonic() - self._started, 1e-9)
        done = min(self._done + self._rows, self._total)
        left = f"{(self._total - done) / rate:.0f} s left" if rate else "…"
        self.message(
            f"{done}/{self._total} rows, {rate:.0f} rows/s, {left}; {split(self._seconds)}"
        )

    def message(self, text: str) -> None:
        """Print the line."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print the last state."""
        if self._rows:
            self._line()


def split(seconds: Mapping[str, float]) -> str:
    """Shares of the workers' time, largest first."""
    total = sum(seconds.values())
    if not total:
        return ""
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return " ".join(f"{kind} {value / total:.0%}" for kind, value in parts if value / total >= 0.01)


def progress_for_terminal() -> Progress:
    """A bar where stderr is a terminal, plain lines elsewhere."""
    return Bar() if sys.stderr.isatty() else Lines()


def ticks(progress: Progress) -> Callable[[int, int], None]:
    """A function that takes the steps done and the steps there are, and shows them."""
    started = False

    def tick(done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start(total, 0)
            started = True
        progress.tick(done, {})

    return tick
