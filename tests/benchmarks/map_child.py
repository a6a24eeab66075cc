"""One map in a process of its own, whose memory is watched: ``map_child.py JSON``, JSON out."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

#: Seconds between two looks.
LOOK = 0.02


def held() -> int:
    """Bytes of this process's own and shared memory; files that are mapped do not count."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def main() -> None:
    given = json.loads(sys.argv[1])
    import depthscope.analysis as analysis

    peak, done = held(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(LOOK):
            peak = max(peak, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    runs = [analysis.open(given[side]) for side in ("source", "target")]
    result = analysis.linear_maps(*runs, **given["settings"])
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    found = {"peak": peak, "seconds": seconds, "passes": result.attrs["training_passes"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
