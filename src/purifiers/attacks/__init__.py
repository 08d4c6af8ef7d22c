"""Attacks, and the views of a defended model that they are run on."""

from purifiers.attacks.autoattack import AutoAttack, Square
from purifiers.attacks.base import ATTACKS, AnyAttack, Attack, Length, distances, show_fraction, titles
from purifiers.attacks.foolbox_attacks import CW, FoolboxPGD, HopSkipJump
from purifiers.attacks.gradient import BIM, FGSM, MIFGSM, PGD, SSP
from purifiers.attacks.views import VIEWS, View

__all__ = [
    "ATTACKS",
    "BIM",
    "CW",
    "FGSM",
    "MIFGSM",
    "PGD",
    "SSP",
    "VIEWS",
    "AnyAttack",
    "Attack",
    "AutoAttack",
    "FoolboxPGD",
    "HopSkipJump",
    "Length",
    "Square",
    "View",
    "distances",
    "show_fraction",
    "titles",
]
