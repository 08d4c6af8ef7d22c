"""Attacks, and the views of a defended model that they are run on."""

from purifiers.attacks.base import ATTACKS, AnyAttack, Attack, Length, distances, show_fraction, titles
from purifiers.attacks.gradient import BIM, FGSM, MIFGSM, NFGSM, PGD, SSP
from purifiers.attacks.libraries import CW, AutoAttack, FoolboxPGD, HopSkipJump, Square
from purifiers.attacks.views import VIEWS, View

__all__ = ["ATTACKS", "VIEWS", "AnyAttack", "Attack", "Length", "View", "distances", "show_fraction", "titles"]
__all__ += ["BIM", "CW", "FGSM", "MIFGSM", "NFGSM", "PGD", "SSP", "AutoAttack", "FoolboxPGD", "HopSkipJump", "Square"]
