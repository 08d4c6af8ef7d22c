# %% [markdown]
# # One purifier, three attackers
# The same purifier, attacked at growing epsilon by somebody who knows the classifier alone (`blind`, as in the paper), by
# somebody who takes the purifier for the identity (`bpda`), and by somebody who knows everything (`full`). An attack knows
# nothing of purifiers: it gets another module each time. Draws the curves into attackers.png.

# %%
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from purifiers import PurifiedClassifier
from purifiers.attacks import PGD, VIEWS
from purifiers.data import load_images, to_float
from purifiers.recipes.load import load_recipe
from purifiers.training.pipeline import train_recipe

EPSILONS = (0.02, 0.05, 0.1, 0.15)


# %%
def main() -> None:
    recipe = load_recipe(
        "digits",
        [
            "classifier.training.epochs=4",
            "purifier={network: cae, widths: [8, 16], blocks: [2, 2], residual: true}",
            "training_attacks.PGD.num_steps=5",
            "teacher_nt.epochs=1",
            "teacher_at.epochs=4",
            "student.epochs=4",
            "student.start=teacher_at",
            "student.classification_weight=0.1",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        run = train_recipe(recipe, Path(folder), device="cpu")
    defended = PurifiedClassifier(run.purifiers["student"], run.classifier)
    test = load_images("digits", "test", size=16).limited(100, seed=0)
    images, labels = to_float(test.images), test.labels

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for view in ("blind", "bpda", "full"):
        accuracies = []
        for epsilon in EPSILONS:
            adversarial = PGD(epsilon=epsilon, step_size=epsilon / 4, num_steps=20)(VIEWS[view](defended), images, labels)
            with torch.no_grad():
                accuracies.append((defended(adversarial).argmax(1) == labels).float().mean().item())
        shown = [f"{value:.0%} at {epsilon}" for value, epsilon in zip(accuracies, EPSILONS, strict=True)]
        print(f"{view:>6}: {', '.join(shown)}")
        axes.plot(EPSILONS, accuracies, marker="o", label=view)
    axes.set(xlabel="epsilon (L-inf)", ylabel="accuracy of the purified", ylim=(0, 1))
    axes.legend(title="the attacker's view")
    figure.savefig("attackers.png")
    print("drawn into attackers.png")


if __name__ == "__main__":
    main()
