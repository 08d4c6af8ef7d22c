"""Trust checks: what makes a robust accuracy unbelievable."""

from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from purifiers.data import ImageSet
from purifiers.purifier import PurifiedClassifier


class Check(BaseModel):
    """One check of a measurement.

    Attributes:
        name: what was checked.
        status: its outcome.
        sentence: the outcome in words.
        figures: the numbers behind it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Literal["passed", "failed", "not applicable"]
    sentence: str
    figures: dict[str, float]


def trust_checks(
    defended: PurifiedClassifier,
    data: ImageSet,
    *,
    epsilon: float,
    norm: Literal["linf", "l2"] = "linf",
    seed: int = 0,
    batch_size: int = 100,
    known: Mapping[str, float] | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Check]:
    """Compare the robust accuracies that were measured already: an attacker who knows more must not be weaker."""
    pairs = (
        ("black-box", "white-box", "a white-box attacker knows more than one who can only ask"),
        ("transfer", "white-box", "a white-box attacker knows more than one who attacks another model"),
        ("one-step", "iterative", "many steps go further than one"),
    )
    checks = []
    for weaker, stronger, why in pairs:
        name = f"{stronger} against {weaker}"
        if known is None or weaker not in known or stronger not in known:
            checks.append(Check(name=name, status="not applicable", sentence="Not measured.", figures={}))
            continue
        failed = known[stronger] > known[weaker]
        verdict = "leave more than" if failed else "leave no more than"
        checks.append(
            Check(
                name=name,
                status="failed" if failed else "passed",
                sentence=f"{stronger.capitalize()} attacks {verdict} {weaker} ones; {why}.",
                figures={weaker: known[weaker], stronger: known[stronger]},
            )
        )
    return checks
