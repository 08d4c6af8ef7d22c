"""A step of training as one CUDA graph: a small network's kernels are shorter than the time that it takes to launch them."""

from collections.abc import Callable

import torch
from torch import Tensor

from purifiers.training.losses import Losses

WARM_UP = 3
"""Steps before the capture: the optimiser makes its state in the first, compilers and libraries are busy in all of them."""


class CapturedStep:
    """``step``, recorded after a few calls and replayed from then on. It does the same, to the last digit.

    ``step``: int64 indices (N,) of a batch, on the device -> its losses. All that differs between its calls lies in tensors
    that stay where they are and in ``generator``, for all its random numbers, and nothing in it waits for the device.
    """

    def __init__(self, step: Callable[[Tensor], Losses], generator: torch.Generator) -> None:
        self.step = step
        self.generator = generator
        self.stream = torch.cuda.Stream(generator.device)
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.chosen: Tensor
        self.losses: Losses

    def __call__(self, chosen: Tensor) -> Losses:
        """The losses of one more step. All batches have the size of the first."""
        self.calls += 1
        if self.calls <= WARM_UP:
            # Not on the default stream: what autograd keeps for a parameter would stay bound to that, which cannot be captured.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                losses = self.step(chosen)
            torch.cuda.current_stream().wait_stream(self.stream)
            return losses
        if self.graph is None:  # the capture records the step and runs nothing
            self.graph, self.chosen = torch.cuda.CUDAGraph(), chosen.clone()
            self.graph.register_generator_state(self.generator)
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.losses = self.step(self.chosen)
        self.chosen.copy_(chosen)
        self.graph.replay()
        return {name: value.clone() for name, value in self.losses.items()}
