"""Wrappers around any purifier: gradient steps or noise before the pass, a share of the input after it."""

import math

import torch
from torch import Tensor, nn

from purifiers.errors import InputError
from purifiers.gradient_steps import pgd
from purifiers.networks.network import Network, channels_of
from purifiers.registry import NETWORKS


class Wrapper(Network):
    """Base of wrappers around the network of a purifier: images (N, C, H, W), float, in [0,1] -> the same."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.channels = channels_of(base)
        self.redraws = getattr(base, "redraws", False)


@NETWORKS.register("adaptive")
class Adaptive(Wrapper):
    """Move an image to where the purifier changes it little, then purify it (Kalaria, Hazra and Chakrabarti, arXiv 2208.13838).

    An autoencoder reconstructs clean images well and attacked ones badly: a few signed gradient steps down the
    reconstruction error ||f(x) - x||^2, within a ball around the image, come before the pass. The gradient of the output
    is that of the last pass (the steps count as a constant).

    Args:
        base: a purifier's network.
        num_steps, step_size: of the descent, in [0,1] units.
        epsilon: the ball, L-inf, in [0,1] units.
    """

    not_exportable = "it follows gradients of its own"

    def __init__(self, base: nn.Module, num_steps: int = 4, step_size: float = 2 / 255, epsilon: float = 8 / 255) -> None:
        super().__init__(base)
        if not isinstance(num_steps, int) or num_steps < 1 or not (0 < step_size < math.inf and 0 < epsilon < math.inf):
            raise InputError(
                "adaptive use needs at least one whole step, and a step_size and an epsilon above 0; got "
                f"num_steps={num_steps}, step_size={step_size}, epsilon={epsilon}"
            )
        self.num_steps = num_steps
        self.step_size = step_size
        self.epsilon = epsilon

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            moved = pgd(
                lambda candidate: -(self.base(candidate) - candidate).square().flatten(1).mean(1).sum(),
                images.detach().clone(),
                epsilon=self.epsilon,
                step_size=self.step_size,
                num_steps=self.num_steps,
            )
        return self.base(moved + (images - images.detach()))


@NETWORKS.register("noisy")
class Noisy(Wrapper):
    """Add Gaussian noise, project into a ball around the image, clip to [0,1], then purify: NRP's dynamic inference (Naseer
    et al. 2020, section 3.5), so that an attacker does not know what the purifier will see.

    Noise comes from torch's global source of randomness.

    Args:
        base: a purifier's network; :class:`purifiers.baselines.Nothing` makes it the baseline of noise alone.
        sigma: standard deviation, in [0,1] units; 0.05 in NRP.
        epsilon: the ball, L-inf, in [0,1] units; 16/255 in NRP.
    """

    not_exportable = "it draws random numbers, so that its file could not be checked; export its base"

    def __init__(self, base: nn.Module, sigma: float = 0.05, epsilon: float = 16 / 255) -> None:
        super().__init__(base)
        if not (0 < sigma < math.inf and 0 < epsilon < math.inf):
            raise InputError(f"noise needs a sigma and an epsilon above 0; got sigma={sigma}, epsilon={epsilon}")
        self.sigma = sigma
        self.epsilon = epsilon

    def forward(self, images: Tensor) -> Tensor:
        noise = (self.sigma * torch.randn_like(images)).clamp_(-self.epsilon, self.epsilon)
        return self.base((images + noise).clamp(0, 1))


@NETWORKS.register("blend")
class Blend(Wrapper):
    """Let a share of the input pass around the purifier: ``share * x + (1 - share) * f(x)``.

    A purifier that redraws the image is robust against an attacker who knows it because nothing passes around its latent. The
    share trades that for similarity to the input: 0 is the purifier, 1 the input.

    Args:
        base: a purifier's network.
        share: in [0,1].
    """

    def __init__(self, base: nn.Module, share: float) -> None:
        super().__init__(base)
        if not 0 <= share <= 1:
            raise InputError(f"the share of the input is in [0,1]; got {share}")
        self.share = share
        self.reach = getattr(base, "reach", None)
        self.stride = getattr(base, "stride", 1)
        self.redraws = self.redraws and not share

    def forward(self, images: Tensor) -> Tensor:
        return torch.lerp(self.base(images), images, self.share)
