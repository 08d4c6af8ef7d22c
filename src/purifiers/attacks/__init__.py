"""Attacks, and the views of a defended model that they are given."""

from typing import Annotated

from pydantic import Field

from purifiers.attacks.autoattack import AutoAttack
from purifiers.attacks.base import Attack, Length, distances, show_fraction
from purifiers.attacks.cw import CW
from purifiers.attacks.foolbox_pgd import FoolboxPGD
from purifiers.attacks.gradient import BIM, FGSM, MIFGSM, PGD, SSP
from purifiers.attacks.hop_skip_jump import HopSkipJump
from purifiers.attacks.square import Square
from purifiers.attacks.views import VIEWS

__all__ = [
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
    "distances",
    "show_fraction",
]

AnyAttack = Annotated[
    PGD | FGSM | BIM | MIFGSM | SSP | CW | AutoAttack | FoolboxPGD | Square | HopSkipJump,
    Field(discriminator="kind"),
]
"""The registry: what a recipe may name as an attack's ``kind``."""
