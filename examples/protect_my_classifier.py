# %% [markdown]
# # A purifier for a classifier that exists already
# The classifier is yours: trained by your own loop, never changed here. Scikit-learn's digits stand for your images.
# Run it as a script, or cell by cell in an editor that knows `# %%`. A minute on one core.

# %%
import tempfile

import torch
import torch.nn.functional as F
from torch import nn

import purifiers
from purifiers import PurifiedClassifier
from purifiers.attacks import PGD
from purifiers.data import load_images, to_float


class MyClassifier(nn.Module):
    """Any module that takes images in [0,1] and returns logits. It normalises inside."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.linear = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features((images - 0.5) / 0.25).flatten(1))


# %% Your own training, as it always was.
def my_training(images: torch.Tensor, labels: torch.Tensor, epochs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    classifier = MyClassifier()
    optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(classifier(images[batch]), labels[batch]).backward()
            optimiser.step()
    return classifier.eval()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


# %% On the command line: purifiers train --classifier my_module:build --images ./train --output my-purifier
def main() -> None:
    learn, test = load_images("digits", "train", size=16), load_images("digits", "test", size=16)
    classifier = my_training(to_float(learn.images), learn.labels)

    with tempfile.TemporaryDirectory() as folder:
        # A recipe that ships, made smaller; without settings it is trained as it stands.
        settings = {
            "purifier": {"network": "cae", "widths": [8, 16], "blocks": [2, 2], "residual": True},
            "training_attacks.PGD.num_steps": 10,
            "teacher_nt.epochs": 1,
            "teacher_at.epochs": 6,
            "student.epochs": 6,
            "student.start": "teacher_at",
            "student.classification_weight": 0.1,
        }
        purifier = purifiers.train(classifier, learn.images, learn.labels, recipe="digits", settings=settings, output=folder)

    defended = PurifiedClassifier(purifier, classifier)
    images, labels = to_float(test.images), test.labels
    attack = PGD(epsilon=0.1, step_size=0.025, num_steps=20)
    blind = attack(classifier, images, labels)  # the attacker knows the classifier alone
    full = attack(defended, images, labels)  # the attacker knows the purifier too
    print(f"clean images:                                      {accuracy(classifier, images, labels):6.1%} alone")
    print(f"                                                   {accuracy(defended, images, labels):6.1%} purified")
    print(f"the attacker does not know the purifier:           {accuracy(classifier, blind, labels):6.1%} alone")
    print(f"                                                   {accuracy(defended, blind, labels):6.1%} purified")
    print(f"the attacker knows it:                             {accuracy(defended, full, labels):6.1%} purified")


if __name__ == "__main__":
    main()
