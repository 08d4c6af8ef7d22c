"""A function in a process of its own, which ends and is started again."""

import operator
import os
import signal
from functools import partial

import pytest

from purifiers.errors import PurifiersError
from purifiers.serve.worker import Worker, WorkerError


def test_a_worker_answers_until_it_ends_and_then_can_be_started_again() -> None:
    worker = Worker(partial(operator.itemgetter, 0))
    assert not worker.alive()
    worker.start()
    try:
        assert worker(["one", "two"]) == "one"
        assert worker.process
        first = worker.process.pid
        assert first
        os.kill(first, signal.SIGTERM)
        assert worker(["still"]) == "still", "only the server ends it"
        os.kill(first, signal.SIGKILL)
        with pytest.raises(WorkerError, match="-9"):
            worker(["one"])
        assert not worker.alive()
        worker.start()
        assert worker(["again"]) == "again"
        assert worker.process.pid != first
        with pytest.raises(WorkerError):
            worker([])  # an error in it ends it
    finally:
        worker.stop()
    assert not worker.alive()


def test_one_that_ended_while_idle_is_not_ready_before_it_has_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(partial(operator.itemgetter, 0))
    worker.start()
    try:
        assert worker.process and worker.process.pid
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
        receive, seen = worker._receive, []

        def received() -> object:
            seen.append(worker.alive())
            return receive()

        monkeypatch.setattr(worker, "_receive", received)
        worker.start()
        assert seen == [False] and worker.alive()
    finally:
        worker.stop()


def test_one_that_dies_while_it_loads_is_an_error_for_people() -> None:
    with pytest.raises(PurifiersError, match="memory"):
        Worker(partial(signal.raise_signal, signal.SIGKILL)).start()


def test_the_error_of_a_worker_that_cannot_start_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        Worker(partial(int, "x")).start()
