"""Gradient views: a threat model is the module that the attacker differentiates.

A view takes the defended model and gives the module that an attack is run on. So any library's attack runs under any
threat model, and a new threat model is one function and one line in ``VIEWS``.
"""

from collections.abc import Callable

from torch import nn

from purifiers.purifier import PurifiedClassifier


def blind(defended: PurifiedClassifier) -> nn.Module:
    """The classifier alone: the attacker does not know of the purifier (the paper's gray-box)."""
    return defended.classifier


def full(defended: PurifiedClassifier) -> nn.Module:
    """The whole defended model with its exact gradient: the attacker knows everything."""
    return defended


VIEWS: dict[str, Callable[[PurifiedClassifier], nn.Module]] = {"blind": blind, "full": full}
