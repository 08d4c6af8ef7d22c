"""Square (Andriushchenko et al. 2020), by pyautoattack: an attack by queries for scores."""

from pydantic import Field
from torch import Tensor, nn

from purifiers.attacks.autoattack import fits_square, make_reference, number_of_classes, run_reference
from purifiers.attacks.base import ATTACKS, Attack, Length
from purifiers.errors import AttackError


@ATTACKS.register("square")
class Square(Attack):
    """Random search over squares at the surface of the ball, by the margin of the scores; takes no gradient.

    ``num_queries``: of each image at most; 5,000 in AutoAttack.
    """

    needs_gradients = False

    epsilon: Length = 8 / 255
    num_queries: int = Field(default=5000, ge=1)
    batch_size: int = 250

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        number_of_classes(model, images)
        if self.norm == "l2" and not fits_square(images):
            height, width = images.shape[-2:]
            raise AttackError(f"pyautoattack's Square in L2 does not work on images of {height} by {width}; L-inf does")
        reference = make_reference(self, model, images, seed, ["square"])
        reference.square.n_queries = self.num_queries
        return run_reference(reference, images, labels, self.batch_size)
