# %% [markdown]
# # Is my own defence robust?
# A defence that is not from this library: it rounds pixels to few levels. Attacks by gradients fail on it, and that looks like
# robustness. The audit attacks it in every way, and reports whether its numbers can be trusted.

# %%
import torch
import torch.nn.functional as F
from torch import nn

import purifiers
from purifiers.data import load_images, to_float
from purifiers.recipes.audit_settings import AuditSettings


class Rounding(nn.Module):
    """Four grey levels. Rounding has no gradient, so that an attack by gradients stands still."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * 3).round() / 3


def train_a_classifier(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    classifier = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in range(5):
        for batch in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(classifier(images[batch]), labels[batch]).backward()
            optimiser.step()
    return classifier.eval()


# %%
def main() -> None:
    learn, test = load_images("digits", "train", size=16), load_images("digits", "test", size=16)
    classifier = train_a_classifier(to_float(learn.images), learn.labels)
    settings = AuditSettings.model_validate(
        {
            "epsilon": 0.1,
            "images": 40,
            "check_images": 10,
            "cascade": True,
            "views": {"full": ["PGD"], "bpda": ["PGD"], "blind": ["PGD"], "query": ["Square"], "transfer": []},
            "attacks": {"Square": {"num_queries": 200}},
        }
    )
    found = purifiers.audit(Rounding(), classifier, test, settings=settings, purifier_name="rounding")

    for record in found.records:
        if record.norm in (None, "linf"):
            print(f"{record.view:>6} {record.attack:<12} {record.accuracy:6.1%} of {record.n} images")
    print(f"\nthe number to quote, the worst case image by image: {found.worst('rounding', 'linf').accuracy:.1%}")
    for check in found.failed("rounding"):
        print(f"do not believe what gradients alone say. {check.name}: {check.sentence}")


if __name__ == "__main__":
    main()
