"""The result of an audit, as typed records in ``audit.json``. Its tables and its page read only this."""

from collections.abc import Mapping
from typing import Any

from purifiers.attacks import VIEWS, AutoAttack
from purifiers.errors import InputError, nearest
from purifiers.evaluation.records import CLEAN, AttackWarning, Record, Records
from purifiers.evaluation.trust.checks import Check
from purifiers.recipes.audit_settings import TRANSFER

WORST = "worst"
"""The ``view`` of records of the worst case; their ``attack`` is one of ``GROUPS``, or ``EVERYTHING``."""
EVERYTHING = "all attacks"
"""The worst case over all attacks of a norm: the number of an audit."""
RAND, ON = ", rand", " on "
"""In an attack's name: AutoAttack's version for a random purifier; before the surrogate that it attacked."""
GROUPS = ("gray-box", "transfer", "black-box", "white-box")
"""Groups of threat models, each with a worst case of its own."""
NORMS = ("linf", "l2")
"""In which worst cases are given."""


def group_of(view: str) -> str:
    """The one of ``GROUPS`` that a threat model belongs to."""
    return "transfer" if view == TRANSFER else VIEWS[view].group


class Audit(Records):
    """Everything that an audit found.

    Attributes:
        settings: of the audit, resolved.
        seconds: wall-clock time of this call, in which attacks that were found in the cache count next to nothing.
        random: the names of purifiers that draw random numbers.
        records: those of the worst case are over the images that all attacks of the norm share.
        checks: the trust checks of every purifier, by name; empty if none were made.
        warnings: from the attacks, and attacks that could not be run.
    """

    filename = "audit.json"
    command = "audit"

    settings: dict[str, Any]
    seconds: float
    random: list[str]
    checks: dict[str, list[Check]]

    def _settings(self) -> Mapping[str, Any]:
        # All attacks of a norm share one epsilon, which their own settings need not repeat.
        radii = {"linf": self.settings["epsilon"], "l2": self.settings["epsilon_l2"]}
        written = {name: one for name, one in self.settings["attacks"].items() if one is not None}
        return {name: {**one, "epsilon": radii[one.get("norm", "linf")]} for name, one in written.items()}

    def titles(self) -> dict[str, str]:
        """The attacks' titles by the names in the records, with those on random purifiers and on surrogates."""
        own, attacks = super().titles(), self.attacks()
        for name in list(own):
            if isinstance(attacks[name], AutoAttack):
                own[name + RAND] = attacks[name].model_copy(update={"version": "rand"}).title
        transferred = {one.attack for one in self.records if one.view == TRANSFER}
        on = {name: [base for base in own if name.startswith(base + ON)] for name in transferred}
        longest = {name: max(bases, key=len) for name, bases in on.items() if bases}
        return own | {name: own[base] + name.removeprefix(base) for name, base in longest.items()}

    @property
    def purifiers(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(record.purifier for record in self.records))

    def clean(self, purifier: str) -> Record:
        """The record of ``purifier`` on clean images."""
        return next(record for record in self.records if (record.purifier, record.view) == (purifier, CLEAN))

    def worst(self, purifier: str, norm: str = "linf", group: str = EVERYTHING) -> Record | None:
        """The worst case of ``purifier`` in a norm, over a group of threat models or over everything; None if not measured.
        Raises InputError if there is no such purifier, norm or group."""
        valid = {"purifier": self.purifiers, "norm": NORMS, "group": (EVERYTHING, *GROUPS)}
        for kind, name in (("purifier", purifier), ("norm", norm), ("group", group)):
            if name not in valid[kind]:
                raise InputError(f"this audit has no {kind} '{name}'{nearest(name, valid[kind])}")
        wanted = (purifier, WORST, group, norm)
        return next((one for one in self.records if (one.purifier, one.view, one.attack, one.norm) == wanted), None)

    def failed(self, purifier: str) -> list[Check]:
        """The trust checks that ``purifier`` failed: its numbers are not reliable."""
        return [check for check in self.checks.get(purifier, []) if check.status == "failed"]

    def left_out(self, purifier: str) -> list[AttackWarning]:
        """The warnings about attacks that could not be run on ``purifier``."""
        return [warning for warning in self.warnings if warning.model == purifier and warning.left_out]
