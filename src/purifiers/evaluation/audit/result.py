"""The result of an audit, as typed records in ``audit.json``. Its tables and its page read only this."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from purifiers.attacks import VIEWS
from purifiers.errors import CheckpointError, InputError, MissingFileError, nearest
from purifiers.evaluation.records import CLEAN, AttackWarning, Record, Result
from purifiers.evaluation.trust import Check
from purifiers.recipes.audit_settings import TRANSFER
from purifiers.storage import write_text

AUDIT_FILE = "audit.json"
WORST = "worst"
"""The ``view`` of records of the worst case; their ``attack`` is one of ``GROUPS``, or ``EVERYTHING``."""
EVERYTHING = "all attacks"
"""The worst case over all attacks of a norm: the number of an audit."""
LEFT_OUT = "left out"
"""How the message of a warning goes on, after the purifier's name, where an attack could not be run."""
GROUPS = ("white-box", "gray-box", "transfer", "black-box")
"""What threat models are grouped by: a worst case is over a group."""
NORMS = ("linf", "l2")
"""In which worst cases are given."""


def group_of(view: str) -> str:
    """The group of a threat model: that of a registered view; ``transfer`` is its own."""
    return view if view == TRANSFER else VIEWS[view].group


class Audit(Result):
    """Everything that an audit found.

    Attributes:
        settings: of the audit, resolved.
        seed: its seed.
        versions, hardware: what it ran with.
        seconds: wall-clock time of this call, in which attacks that were found in the cache count next to nothing.
        random: the names of purifiers that draw random numbers.
        records: flat list; those of the worst case are over the images that all attacks of the norm share.
        checks: the trust checks of every purifier, by name; empty where none were made.
        warnings: from the attacks, and attacks that could not be run.
    """

    settings: dict[str, Any]
    seed: int
    versions: dict[str, str]
    hardware: dict[str, str | int]
    seconds: float
    random: list[str]
    records: list[Record]
    checks: dict[str, list[Check]]
    warnings: list[AttackWarning]

    @property
    def purifiers(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(record.purifier for record in self.records))

    def clean(self, purifier: str) -> Record:
        """The record of ``purifier`` on clean images."""
        return next(record for record in self.records if (record.purifier, record.view) == (purifier, CLEAN))

    def worst(self, purifier: str, norm: str = "linf", group: str = EVERYTHING) -> Record | None:
        """The worst case of ``purifier`` in a norm, over a group of threat models or over everything; None if not measured.

        Raises:
            InputError: no such purifier, norm or group.
        """
        valid = {"purifier": self.purifiers, "norm": NORMS, "group": (EVERYTHING, *GROUPS)}
        for kind, asked in (("purifier", purifier), ("norm", norm), ("group", group)):
            if asked not in valid[kind]:
                raise InputError(f"in this audit there is no {kind} '{asked}'{nearest(asked, valid[kind])}")
        wanted = (purifier, WORST, group, norm)
        found = [record for record in self.records if (record.purifier, record.view, record.attack, record.norm) == wanted]
        return found[0] if found else None

    def failed(self, purifier: str) -> list[Check]:
        """The trust checks that ``purifier``'s numbers failed: they are not to be believed."""
        return [check for check in self.checks.get(purifier, []) if check.status == "failed"]

    def left_out(self, purifier: str) -> list[AttackWarning]:
        """The warnings that say which attacks could not be run on ``purifier``."""
        return [warning for warning in self.warnings if warning.message.startswith(f"{purifier}: {LEFT_OUT}")]

    def write(self, folder: Path) -> None:
        """Write ``audit.json`` into ``folder``, atomically."""
        write_text(folder / AUDIT_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Audit":
        """Read ``folder``'s ``audit.json``.

        Raises:
            MissingFileError: there is none.
            CheckpointError: it is damaged or was written by another version.
        """
        path = folder / AUDIT_FILE
        if not path.is_file():
            raise MissingFileError(f"no {AUDIT_FILE} in {folder}; 'purifiers audit' writes it")
        try:
            return cls.model_validate_json(path.read_text())
        except ValidationError as error:
            raise CheckpointError(f"{path} is damaged or of another version: {error.errors()[0]['msg']}") from error
