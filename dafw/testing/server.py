"""Fresh processes at the price of a copy: a server imports once what trainings need, and each order runs in copies.

A new interpreter takes seconds to import torch and Lightning. A copy of a process that has imported them, and has done
nothing else, takes milliseconds and is as fresh: it has trained nothing, and shares nothing with the test.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn

#: What the server imports before the first order. What a copy needs beyond that, it imports itself.
PRELOADED = ("dafw.testing.processes", "dafw.run.commands", "sklearn.linear_model", "sklearn.cluster", "timm")
#: Seconds that the other processes of an order have to end in, once one of them has failed.
GRACE = 20.0
_START = "from dafw.testing.server import serve; serve()"


class Ended(NamedTuple):
    """A process that has ended: its exit code, negative after a signal, and what it printed."""

    code: int
    out: str
    err: str


def run_fresh(
    function: str,
    arguments: Sequence[str] = (),
    *,
    variables: Sequence[Mapping[str, str]] = ({},),
    folder: Path | None = None,
    timeout: float = 600,
) -> list[Ended]:
    """Calls a function in fresh processes, all at the same time, and waits for their ends.

    Args:
        function: ``package.module:name``; it is given ``arguments``, and what it returns is the exit code (None: 0).
        arguments: of the function.
        variables: for each process, the environment variables that differ from this process's. ``OMP_NUM_THREADS`` is
            the number of threads that torch has in this process, unless it is given.
        folder: the processes' working directory; this process's if ``None``.
        timeout: in seconds, after which the processes are killed.

    Returns:
        For each process, how it ended.
    """
    import torch

    own = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with TemporaryDirectory(prefix="dafw-fresh-") as outputs:
        order = {
            "function": function,
            "arguments": list(arguments),
            "environments": [own | dict(changes) for changes in variables],
            "folder": str(folder or Path.cwd()),
            "path": [path or str(Path.cwd()) for path in sys.path],
            "outputs": outputs,
            "timeout": timeout,
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server that makes fresh processes has died"
        said = [[Path(outputs, f"{i}.{end}").read_text() for end in ("out", "err")] for i in range(len(variables))]
    return [Ended(code, *texts) for code, texts in zip(json.loads(answer), said, strict=True)]


_servers: dict[int, "subprocess.Popen[str]"] = {}


def server_pid() -> int | None:
    """The process that makes this process's fresh ones, once there is one."""
    server = _servers.get(os.getpid())
    return server.pid if server else None


def _server() -> "subprocess.Popen[str]":
    """Starts the server of this process at its first call; a forked copy of a process starts its own."""
    server = _servers.get(os.getpid())
    if server is None or server.poll() is not None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(
            [sys.executable, "-c", _START], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        _servers[os.getpid()] = server
        atexit.register(_stop, server, os.getpid())
    return server


def _stop(server: "subprocess.Popen[str]", owner: int) -> None:
    if os.getpid() == owner and server.stdin is not None:
        with contextlib.suppress(OSError):
            server.stdin.close()
        server.wait()


def serve() -> NoReturn:
    """The server: carries out orders from its standard input until that is closed."""
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in orders:
        order = json.loads(line)
        pids = []
        for number in range(len(order["environments"])):
            pid = os.fork()
            if not pid:
                _end(_carry_out(order, number))
            pids.append(pid)
        print(json.dumps(_wait(pids, order["timeout"])), file=answers, flush=True)
    _end(0)


def _carry_out(order: dict[str, Any], number: int) -> int:
    """One copy's work."""
    os.setsid()
    for descriptor, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(order["outputs"], f"{number}.{ending}"), os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    os.environ.clear()
    os.environ.update(order["environments"][number])
    os.chdir(order["folder"])
    sys.path[:] = order["path"]
    sys.argv[1:] = order["arguments"]
    torch = importlib.import_module("torch")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # the server itself has one thread
    module, _, name = order["function"].partition(":")
    try:
        return int(getattr(importlib.import_module(module), name)(*order["arguments"]) or 0)
    except Exception:
        traceback.print_exc()
        return 1


def _end(code: int) -> NoReturn:
    """Ends a copy as multiprocessing does: what asked to be called at the end is, but no module is taken apart."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(pids: list[int], timeout: float) -> list[int]:
    """The exit codes of all; kills them at the end of ``timeout``, and soon after one of them has failed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while left := [pid for pid in pids if pid not in codes]:
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid in left:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]
