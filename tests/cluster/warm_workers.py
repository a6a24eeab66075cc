"""Workers of a test's Ray cluster, forked from a process that has imported everything.

Ray starts each worker as a new Python, which spends seconds on importing torch before it does
anything; a test that starts many actors does little else. This file takes the place of the script
that Ray starts a worker with: it hands the worker's arguments, environment and open files to a
server, whose fork then runs Ray's own worker. Every actor still has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

SERVER = "TEST_WARM_WORKERS"
PRELOADED = (
    "depthscope.jobs.extraction",
    "depthscope.pipeline.schedules",
    "depthscope.pipeline.stage",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama",
)


@contextmanager
def warm_workers() -> Iterator[dict[str, Any]]:
    """Run a server for the block; the arguments of a node of `ray.cluster_utils.Cluster`."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        place = Path(folder) / "socket"
        server = subprocess.Popen([sys.executable, __file__, str(place)], stdin=subprocess.DEVNULL)
        os.environ[SERVER] = str(place)
        try:
            while not place.exists():
                assert server.poll() is None, "the server of warm workers ended"
                time.sleep(0.05)
            yield {"setup_worker_path": __file__}
        finally:
            del os.environ[SERVER]
            server.terminate()
            server.wait()


def _ask(place: str) -> None:
    """Have a worker started, and live as long as it does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    given, words = parser.parse_known_args()
    context = json.loads(given.serialized_runtime_env_context or "{}")
    environment = {**os.environ, **context.get("env_vars", {})}
    request = json.dumps({"words": words, "environment": environment, "folder": str(Path.cwd())})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


def _serve(place: Path) -> None:
    for name in PRELOADED:
        import_module(name)
    # Ray reads its settings from the environment when it is imported: a worker's are its own.
    assert "ray" not in sys.modules
    # The threads that are there by now are those of OpenBLAS and jemalloc, which know of forks.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen(64)
        listening.settimeout(2)
        while os.getppid() == parent:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listening.close()
                _become_worker(connection)
            connection.close()


def _become_worker(connection: socket.socket) -> None:
    import runpy

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    found = json.loads(request)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(found["environment"])
    os.chdir(found["folder"])
    sys.argv = found["words"]
    # Whoever asked waits for the connection to close: it stays open until this process ends.
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        _serve(Path(sys.argv[1]))
    else:
        _ask(os.environ[SERVER])
