"""PGD (Madry et al. 2018) by foolbox: a second, independent code for what :mod:`purifiers.attacks.gradient` does."""

from pydantic import Field
from torch import Tensor, nn

from purifiers.attacks.base import ATTACKS, Attack, Length, import_foolbox, share_of_epsilon
from purifiers.seeds import reproducible


@ATTACKS.register("foolbox_pgd")
class FoolboxPGD(Attack):
    """Many small steps from a random point of the ball, as foolbox takes them."""

    epsilon: Length = 8 / 255
    step_size: Length = share_of_epsilon(4)
    num_steps: int = Field(default=20, ge=1)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        foolbox = import_foolbox()
        attacks = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
        attack = attacks[self.norm](abs_stepsize=self.step_size, steps=self.num_steps, random_start=True)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        with reproducible(seed, images.device):
            adversarial: Tensor = attack.run(wrapped, images, labels, epsilon=self.epsilon)
        return adversarial.clamp(0, 1)
