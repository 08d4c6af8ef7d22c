"""A purifier and a classifier behind it: image files in, responses out."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from purifiers.bulk.pieces import BATCH_PIXELS, as_png, purify_pixels, refuse_other_channels, results_of
from purifiers.data.files import image_size, read_rgb
from purifiers.errors import DataError, ImageTooLargeError, InputError
from purifiers.purifier import Purifier
from purifiers.registry import place
from purifiers.serve.worker import Answer, Job, Refused

logger = logging.getLogger(__name__)


LATE = Refused(504, "timeout", "no response in time; the server is busy or the image large")


@dataclass
class Models:
    """Answers jobs; ConfigError if the purifier does not take RGB."""

    purifier: Purifier
    classifier: nn.Module | None = None
    names: Sequence[str] | None = None  # of the classes
    device: torch.device | str = "cpu"  # both are put there
    max_pixels: int = 4_000_000  # width times height of an image
    threads: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)  # decode and encode, which is without Python's lock

    def __post_init__(self) -> None:
        refuse_other_channels(self.purifier.placed(self.device))
        self.purifier = self.purifier.optimize()
        if self.classifier is not None:
            self.classifier = place(self.classifier, self.device)

    def __call__(self, jobs: list[Job]) -> list[Answer | Refused]:
        """Answer jobs in their order: images of one size and route together, and of large ones few at a time."""
        answers: dict[int, Answer | Refused] = {}
        piece: dict[int, Job] = {}
        pixels = 0
        for number, job in enumerate(jobs):
            size = _attempted(image_size, job, self.max_pixels)
            if isinstance(size, Refused):
                answers[number] = size
                continue
            if piece and pixels + size[0] * size[1] > BATCH_PIXELS:
                answers |= self._piece(piece)
                piece, pixels = {}, 0
            piece[number], pixels = job, pixels + size[0] * size[1]
        answers |= self._piece(piece)
        return [answers[number] for number in range(len(jobs))]

    def _piece(self, jobs: dict[int, Job]) -> dict[int, Answer | Refused]:
        """Answers by the jobs' numbers."""
        answers: dict[int, Answer | Refused] = dict.fromkeys(jobs, LATE)
        made: dict[int, Future[Answer]] = {}
        routes: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        waiting = {number: job for number, job in jobs.items() if time.monotonic() <= job.deadline}
        images = self.threads.map(lambda job: _attempted(read_rgb, job, self.max_pixels), waiting.values())
        for (number, job), image in zip(waiting.items(), images, strict=True):
            if isinstance(image, Refused):
                answers[number] = image
            else:
                routes[job.route][number] = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        for route, group in routes.items():
            function, response = (self.purified, png) if route == "purify" else (self.classified, self.scores)
            for number, output in results_of(function, group).items():
                if isinstance(output, Exception):
                    size = "{2} x {1}".format(*group[number].shape)
                    logger.error("an image of %s failed", size, exc_info=output)
                    message = f"the purifier or the classifier cannot take an image of {size}"
                    answers[number] = Refused(422, "failed", str(output) if isinstance(output, InputError) else message)
                else:
                    made[number] = self.threads.submit(response, output)
        return answers | {number: future.result() for number, future in made.items()}

    def purified(self, images: Tensor) -> Any:
        """Purified images, uint8 (3, H, W)."""
        return purify_pixels(self.purifier, images).numpy()

    def classified(self, images: Tensor) -> Any:
        """The probabilities of the classes, for each image; raises InputError if one is not finite."""
        assert self.classifier is not None
        purified = purify_pixels(self.purifier, images, torch.float32)
        parts = purified.to(self.device).split(max(1, BATCH_PIXELS // (images.shape[2] * images.shape[3])))
        with torch.no_grad():
            scores = torch.cat([self.classifier(part).softmax(1) for part in parts])
        if not scores.isfinite().all():
            raise InputError("the classifier's scores are not finite")
        return scores.tolist()

    def scores(self, scores: list[float]) -> Answer:
        """The response of ``/classify``."""
        best = int(np.argmax(scores))
        names = list(self.names) if self.names and len(self.names) == len(scores) else None
        found = {"class": best, "name": names and names[best], "scores": scores, "names": names}
        return Answer(json.dumps(found, separators=(",", ":")).encode(), "application/json")


def _attempted(read: Callable[..., Any], job: Job, max_pixels: int) -> Any:
    """What ``read`` returns of an image file, or the refusal of that file."""
    try:
        return read(job.content, max_pixels=max_pixels)
    except ImageTooLargeError as error:
        return Refused(413, "too_many_pixels", str(error))
    except DataError as error:
        return Refused(400, "no_image", str(error))


def png(pixels: np.ndarray) -> Answer:
    """The response of ``/purify``, of uint8 (3, H, W)."""
    return Answer(as_png(Image.fromarray(pixels.transpose(1, 2, 0))), "image/png")
