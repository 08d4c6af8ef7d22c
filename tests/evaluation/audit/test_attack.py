import torch
from torch import nn

from purifiers import PurifiedClassifier
from purifiers.data import ImageSet, to_float
from purifiers.evaluation.audit.attack import Auditor, Composite, Subject
from purifiers.evaluation.evaluator import Evaluator
from purifiers.recipes.audit_settings import AuditSettings
from tests.conftest import Linear


def test_of_each_image_the_first_version_that_broke_it_is_kept() -> None:
    data = ImageSet("x", torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), ("a",))
    composite = Composite(data, torch.tensor([False, True, True, True, True]))

    def version(value: float, count: int) -> torch.Tensor:
        return torch.full((count, 3, 2, 2), value)

    composite.add(torch.ones(5, dtype=torch.bool), version(0.1, 5), torch.tensor([True, False, True, True, True]), 5, 2.0)
    composite.add(torch.tensor([False, True, True, False, True]), version(0.2, 3), torch.tensor([True, False, True]), 3, 3.0)
    assert composite.right.tolist() == [False, False, False, True, True]
    # Wrong unattacked; broken first; broken second; right throughout, second attack not tried; right throughout.
    torch.testing.assert_close(composite.images[:, 0, 0, 0], torch.tensor([0.0, 0.1, 0.2, 0.1, 0.2]))
    assert (composite.fewest, composite.seconds) == (3, 5.0)
    assert torch.equal(data.images, torch.zeros_like(data.images)) and to_float(data.images).sum() == 0


def test_smaller_subsets_lie_in_larger_ones() -> None:
    data = ImageSet("x", torch.arange(20).view(20, 1, 1, 1).expand(20, 3, 2, 2).to(torch.uint8), torch.arange(20), ("a",) * 20)
    evaluator, model = Evaluator(Linear(20, (3, 2, 2)), "x", data, seed=3), Linear(20, (3, 2, 2))
    subject = Subject("x", PurifiedClassifier(nn.Identity(), model))
    auditor = Auditor(subject, evaluator, AuditSettings(images=12), {})
    small = auditor._within(5)
    assert len(small) == 12
    assert torch.equal(evaluator.limited(12).subset(small).labels, evaluator.limited(5).labels)
    assert auditor._within(99).all()
    assert torch.equal(data.drawn(99, seed=3), torch.arange(20))
