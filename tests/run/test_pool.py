"""The processes of tables and studies: started, heard, replaced and ended."""

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from dafw.run.pool import ProcessPool, Worker, signals


def answer(pipe: Connection, environment: dict[str, str], word: str) -> None:
    """Answers until the pipe closes; dies when told to."""
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send((word, asked, environment["OMP_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]))
        if asked == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if asked == "sleep":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pipe.send("deaf")
            time.sleep(60)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessPool]:
    """Two processes at most."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with signals() as stop:
        made = ProcessPool(answer, ("hello",), 2, stop, grace=2)
        yield made
        made.close(idle=made.workers)


def heard(pool: ProcessPool) -> list[tuple[Worker, object]]:
    ready = pool.wait(30)
    assert not ready.stopped
    return ready.messages


def test_workers_answer_and_have_their_own_numbers(pool: ProcessPool) -> None:
    first, second = pool.start(), pool.start()
    assert ([first.number, second.number], pool.full) == ([0, 1], True)
    second.pipe.send("a")
    assert heard(pool) == [(second, ("hello", "a", "1", "1"))]
    assert pool.wait(0).messages == []


def test_a_worker_that_dies_is_heard_first_and_then_replaced(pool: ProcessPool) -> None:
    first, second = pool.start(), pool.start()
    first.pipe.send("die")
    messages, ended = [], []
    while not ended:
        ready = pool.wait(30)
        messages += ready.messages
        ended += ready.ended
    assert ([worker for worker, _ in messages], ended) == ([first], [first])
    assert pool.remove(first) == -signal.SIGKILL
    assert (pool.workers, pool.full) == ([second], False)
    assert pool.start().number == 0


def test_a_signal_is_seen_and_does_nothing_else(pool: ProcessPool) -> None:
    worker = pool.start()
    signal.raise_signal(signal.SIGTERM)
    assert pool.wait(30).stopped
    assert worker.process.is_alive()


def test_closing_waits_kills_what_is_deaf_and_lets_the_idle_go(pool: ProcessPool) -> None:
    busy, idle = pool.start(), pool.start()
    busy.pipe.send("sleep")
    while "deaf" not in [said for _, said in heard(pool)]:
        pass
    idle.pipe.send("a")
    heard(pool)
    pool.close(idle=[idle])
    assert (busy.process.exitcode, idle.process.exitcode) == (-signal.SIGKILL, 0)
    assert pool.workers == []
