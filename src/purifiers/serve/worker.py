"""A function in a process of its own. This module is light: the process that answers HTTP loads no torch."""

import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from purifiers.errors import PurifiersError


class Job(NamedTuple):
    """What is to be done with an image file."""

    route: str  # "purify" or "classify"
    content: bytes  # the file
    deadline: float  # of time.monotonic(): later, nobody waits for the answer


class Answer(NamedTuple):
    """The response to a job."""

    content: bytes
    media_type: str


class Refused(NamedTuple):
    """Why there is none: an error response."""

    status: int
    reason: str  # for the metrics
    message: str  # for the client


class WorkerError(PurifiersError):
    """The process ended, or was stopped."""


class Worker:
    """Runs the function that ``build``, which can be pickled, returns. A crash there, as by an image that takes all memory,
    ends no connection, and that work and the event loop do not wait for one another."""

    process: BaseProcess | None = None
    pipe: Connection
    ready = False

    def __init__(self, build: Callable[[], Callable[[list[Job]], list[Answer | Refused]]]) -> None:
        self.build = build

    def start(self) -> None:
        """Start the process and wait until it is ready; raises what ``build`` raises, or WorkerError."""
        self.ready = False  # the one before may have ended while nobody called it
        context = get_context("spawn")  # a fork would inherit torch's threads as locks that nobody opens
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, self.build), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        if error := self._receive():
            raise error
        self.ready = True

    def __call__(self, jobs: list[Job]) -> list[Answer | Refused]:
        """Answer jobs, and wait for it; raises WorkerError."""
        with suppress(OSError):  # then there is nothing to receive either
            self.pipe.send(jobs)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            assert self.process
            self.process.join(1)
            self.stop()
            killed = " (killed, as by a system that is out of memory)" if self.process.exitcode == -9 else ""
            raise WorkerError(f"the worker ended with status {self.process.exitcode}{killed}") from error

    def alive(self) -> bool:
        """Whether the process runs and has started."""
        return self.ready and self.process is not None and self.process.is_alive()

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.ready = False
        if self.process:
            self.process.kill()
            self.process.join()


def _run(pipe: Connection, build: Callable[[], Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the server ends this process, last
        signal.signal(number, signal.SIG_IGN)
    try:
        function = build()
    except Exception as error:
        pipe.send(error)
        return
    pipe.send(None)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the server has ended
        while True:
            pipe.send(function(pipe.recv()))
