"""A queue whose jobs are answered in batches, by a worker that is started again when it dies."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from purifiers.serve.worker import Answer, Job, Refused, Worker, WorkerError

logger = logging.getLogger(__name__)
Waiting = asyncio.Future[Answer | Refused]
"""An answer to come."""
DIED = Refused(503, "worker_died", "the worker died while it processed this and other images")
LOOK = 1  # seconds between two looks at whether an idle worker is alive
LONGEST_PAUSE = 30  # seconds between two attempts to start a worker


@dataclass
class Batcher:
    """Collects jobs that arrive within a short time, and passes them to the worker together."""

    worker: Worker  # started
    max_size: int  # jobs of a batch
    timeout: float  # seconds that the first job of a batch waits for others
    patience: float  # seconds after which a worker that has not answered a batch is stopped
    observe: Callable[[int], object]  # called with the size of each batch
    queue: dict[Waiting, Job] = field(default_factory=dict)  # the longest first
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    restarts: int = 0  # of the worker, so far

    def submit(self, job: Job) -> Waiting:
        """The answer to come. A job is forgotten if this is cancelled while it waits."""
        result: Waiting = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda result: self.queue.pop(result, None))
        self.queue[result] = job
        self.filled.set()
        return result

    async def run(self) -> None:
        """Process the queue until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK) as limit:
                    await self._waiting(1)
                    limit.reschedule(asyncio.get_running_loop().time() + self.timeout)
                    await self._waiting(self.max_size)
            first = [result for result in self.queue if not result.done()][: self.max_size]
            if batch := {result: self.queue.pop(result) for result in first}:
                self.observe(len(batch))
                for result, answer in zip(batch, await self._answers([*batch.values()]), strict=True):
                    if not result.done():
                        result.set_result(answer)
            pause = 0.5
            while not self.worker.alive():
                try:
                    await asyncio.to_thread(self.worker.start)
                    self.restarts += 1
                except Exception as error:  # its files may have changed
                    logger.error("the worker does not start: %s; next attempt in %g s", error, pause)
                    await asyncio.sleep(pause)
                    pause = min(LONGEST_PAUSE, 2 * pause)

    async def _waiting(self, count: int) -> None:
        """Wait until so many jobs are queued."""
        while len(self.queue) < count:
            self.filled.clear()
            await self.filled.wait()

    async def _answers(self, jobs: list[Job]) -> list[Answer | Refused]:
        call = asyncio.ensure_future(asyncio.to_thread(self.worker, jobs))
        try:
            answered, _ = await asyncio.wait({call}, timeout=self.patience)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not answered:
            logger.error("the worker has not answered for %g s and is stopped", self.patience)
            self.worker.stop()
        try:
            return [*await call]
        except WorkerError as error:
            logger.error("%s; it is started again", error)
            return [DIED] * len(jobs)
