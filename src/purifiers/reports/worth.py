"""What a purifier is worth, in a sentence, read from its model card."""

import re
from pathlib import Path

from purifiers.hub import card_in

_IN_FRONT_OF = re.compile(r"^In front of (.+?), accuracy in %", re.MULTILINE)
_DATASET = re.compile(r"^datasets: \[(.+)\]$", re.MULTILINE)
_ROW = re.compile(
    r"^\| (?P<attack>[^|]+) \| (?P<view>\S+) \| (?P<epsilon>\S+) \| (?P<n>[\d,]+) \| \S+ \| (?P<accuracy>[\d.]+) \| "
    r"[^|]+ \| (?P<psnr>\S+) \| \S+ \|$",
    re.MULTILINE,
)
_KNOWS = {"blind": "who knows the classifier only", "full": "who knows the purifier too"}
"""What the attacker knows; every view but ``blind`` is one of the second."""


def worth(folder: Path, other: str | None = None) -> str:
    """What was measured of a purifier, in a sentence: on clean images, and by the best of the measured attacks of each view.

    Where both views were measured within one epsilon, that is the one told.

    Args:
        folder: of the purifier; its card is looked for in it.
        other: the classifier behind it, where it is not the purifier's own, for a word of warning; one may go by several names.

    Returns:
        The sentence; if there is no card, or one without a table, that nothing is known.
    """
    card = card_in(folder) or ""
    measured = _IN_FRONT_OF.split(card)
    if len(measured) < 3:
        return "There is no model card beside this purifier: what it is worth on many images is not known here."
    rows = [match.groupdict() for match in _ROW.finditer(measured[2])]
    for row in rows:
        row["view"] = row["view"] if row["view"] in ("-", "blind") else "full"
    within = {view: {row["epsilon"] for row in rows if row["view"] == view} for view in _KNOWS}
    shared = set.intersection(*within.values()) - {"-"} or set.union(*within.values())
    said = [_clean(row) for row in rows if row["view"] == "-"]
    for view, knows in _KNOWS.items():
        own = [row for row in rows if row["view"] == view and row["epsilon"] in shared]
        if own:
            lowest = min(own, key=lambda row: float(row["accuracy"]))
            said.append(
                f"{lowest['accuracy']} % under the best measured attack by one {knows} ({lowest['attack']}, epsilon "
                f"{lowest['epsilon']}, {lowest['n']} images)"
            )
        else:
            said.append(f"not measured under an attacker {knows}")
    dataset = _DATASET.search(card)
    where = f"on {dataset[1]} " if dataset else ""
    warning = f" Behind it here is {other}: if that is another classifier, these numbers say nothing of it." if other else ""
    return f"Measured {where}in front of {measured[1]}: {'; '.join(said)}. Better attacks may leave less.{warning}"


def _clean(row: dict[str, str]) -> str:
    return f"{row['accuracy']} % of clean images right, {row['psnr']} dB from the originals"
