"""One sweep in a process of its own, whose memory is watched: ``skip_child.py JSON``, JSON out."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from map_child import LOOK, held


def main() -> None:
    given = json.loads(sys.argv[1])
    # At rest is the interpreter with all that the sweep imports.
    import depthscope.pipeline.sweep  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from depthscope.jobs import InterveneSpec, intervene
    from depthscope.storage.errors import RequestError

    spec = InterveneSpec(**given["spec"])
    at_rest, peak, done = held(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(LOOK):
            peak = max(peak, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        intervene(Path(given["root"]), spec)
    except RequestError as error:
        sys.exit(f"{error}")
    finally:
        done.set()
        watcher.join()
    print(json.dumps({"peak": peak - at_rest, "at_rest": at_rest}))


if __name__ == "__main__":
    main()
