"""A queue that processes images in batches, in one thread."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from purifiers.bulk.pieces import results_of
from purifiers.errors import InputError

Function = Callable[[Tensor], Sequence[Any]]
"""Images of one size, uint8 (N, 3, H, W), on the CPU -> N results."""

logger = logging.getLogger(__name__)


@dataclass
class Batcher:
    """Collects images that arrive within a short time, and passes those of one size to their function together."""

    max_size: int  # images of a batch
    timeout: float  # seconds that the first image of a batch waits for others
    observe: Callable[[int], object]  # called with the size of each batch
    queue: asyncio.Queue[tuple[Function, np.ndarray, asyncio.Future[Any]]] = field(default_factory=asyncio.Queue)

    async def submit(self, function: Function, image: np.ndarray) -> Any:
        """The result of ``function`` for an image, uint8 (3, H, W); raises InputError where it fails on this image."""
        result = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((function, image, result))
        return await result

    async def run(self) -> None:
        """Process the queue until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            while True:
                batch = [await self.queue.get()]
                try:
                    async with asyncio.timeout(self.timeout):
                        while len(batch) < self.max_size:
                            batch.append(await self.queue.get())
                except TimeoutError:
                    pass
                groups = defaultdict(list)
                for function, image, result in batch:
                    if not result.done():  # its request timed out while it waited
                        groups[function, image.shape].append((image, result))
                self.observe(sum(map(len, groups.values())))
                for (function, _), group in groups.items():
                    outputs = await loop.run_in_executor(thread, results_of, function, [image for image, _ in group])
                    for (image, result), output in zip(group, outputs, strict=True):
                        size = "{2} x {1}".format(*image.shape)
                        if isinstance(output, Exception):
                            logger.error("an image of %s failed", size, exc_info=output)
                            message = f"the purifier or the classifier cannot take an image of {size}"
                            output = output if isinstance(output, InputError) else InputError(message)
                        if not result.done():
                            result.set_exception(output) if isinstance(output, InputError) else result.set_result(output)
