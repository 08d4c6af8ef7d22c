"""A recipe's settings of the audit: attacks under every threat model, all within one ball for each norm."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_serializer, model_validator

from purifiers.attacks import VIEWS, AnyAttack, Attack, Length
from purifiers.attacks.base import parse_fraction
from purifiers.errors import InputError, nearest
from purifiers.kinds import Group
from purifiers.recipes.parts import Positive
from purifiers.weights import anywhere

TRANSFER = "transfer"  # the threat model that is no view: its adversarial images are made on another model
Radius = Annotated[Length, Field(gt=0)]


def refuse_gradients(view: str, attacks: Mapping[str, Attack]) -> None:
    """Refuse an unknown ``view``, and, by InputError, an attack that needs gradients where the view gives none."""
    gradients = VIEWS[view].gradients
    for name, attack in attacks.items():
        if attack.needs_gradients and not gradients:
            raise InputError(f"views.{view}: '{name}' takes gradients, which this view does not give")


def surrogate_parts(text: str) -> list[str]:
    """``PURIFIER+CLASSIFIER`` as its two places, a classifier alone as one; a path may have a plus."""
    return [text] if Path(text).exists() else text.split("+")


def _both(*names: str) -> list[str]:
    return [name + suffix for suffix in ("", "-L2") for name in names]


STANDARD_ATTACKS: Mapping[str, Mapping[str, str]] = {
    name + suffix: {"kind": kind, "norm": norm}
    for suffix, norm in (("", "linf"), ("-L2", "l2"))
    for name, kind in {
        "FGSM": "fgsm",
        "MI-FGSM": "mifgsm",
        "PGD": "pgd",
        "foolbox PGD": "foolbox_pgd",
        "AA": "autoattack",
        "Square": "square",
        "HopSkipJump": "hop_skip_jump",
    }.items()
}
STANDARD_VIEWS: Mapping[str, list[str]] = {
    "full": _both("FGSM", "PGD", "foolbox PGD", "AA"),
    "bpda": _both("PGD"),
    "eot": _both("PGD"),
    "blind": _both("PGD", "MI-FGSM", "AA"),
    "transfer": _both("PGD", "MI-FGSM"),
    "query": _both("Square", "HopSkipJump"),
}
STANDARD_LIMITS: Mapping[str, int] = {**dict.fromkeys(_both("AA", "Square"), 200), **dict.fromkeys(_both("HopSkipJump"), 100)}


class AuditSettings(Group):
    """``attacks``, ``views`` and ``limits`` change the standard ones, name by name; null removes one.

    ``epsilon``, ``epsilon_l2``: the L-inf and the L2 ball of all attacks, which have no epsilon of their own here.
    ``attacks``: by the names that the tables show.
    ``views``: threat model -> names of attacks. ``eot`` is run where the purifier is random; there AutoAttack is its version
    ``rand``.
    ``images``: the number of random test images that are attacked.
    ``limits``: an attack's name, or a purifier's -> the largest number of them. Subsets are nested; the worst case is over the
    smallest.
    ``draws``: of the purifier's random numbers, for the view ``eot``: at least 2.
    ``surrogates``: for ``transfer``, beside the recipe's companions: classifiers, or pairs ``PURIFIER+CLASSIFIER``.
    ``cascade``: an attack skips images that others of its group have broken already, as AutoAttack does within; the slow ones,
    which have a limit, come last. Saves most of the time where only the worst cases matter.
    ``check_images``: the number of images for the trust checks; 0 for none.
    """

    epsilon: Radius = Field(default=8 / 255, le=1)
    epsilon_l2: Radius = 128 / 255
    attacks: dict[str, AnyAttack] = Field(min_length=1)
    views: dict[str, tuple[str, ...]]
    images: Positive = 1000
    limits: dict[str, Positive]
    draws: int = Field(default=20, ge=2)
    surrogates: tuple[Annotated[str, AfterValidator(lambda text: "+".join(map(anywhere, surrogate_parts(text))))], ...] = ()
    cascade: bool = False
    check_images: int = Field(default=100, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _over_the_standard(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        radii = {key: cls.model_fields[key].default for key in ("epsilon", "epsilon_l2")}
        with suppress(TypeError, ValueError):  # the fields raise the error
            found = {key: float(parse_fraction(content.get(key, default))) for key, default in radii.items()}
            radii = found if 0 < found["epsilon"] <= 1 and found["epsilon_l2"] > 0 else radii
        given = {key: {} if content.get(key) is None else content[key] for key in ("attacks", "views", "limits")}
        for key, value in given.items():
            if not isinstance(value, Mapping):
                raise ValueError(f"{key} is a group of values; got {value!r}")
        attacks: dict[str, Any] = {name: {} for name in STANDARD_ATTACKS} | given["attacks"]
        removed = {name for name, attack in attacks.items() if attack is None}
        attacks = {name: attack for name, attack in attacks.items() if attack is not None}
        for name, attack in attacks.items():
            attack = {"kind": attack.kind, **attack.model_dump(exclude_unset=True)} if isinstance(attack, Attack) else attack
            attack = {"kind": attack} if isinstance(attack, str) else attack
            if not isinstance(attack, Mapping):
                continue
            # Another kind shares no numbers with the standard one.
            known = STANDARD_ATTACKS.get(name, {})
            filled = {**(known if attack.get("kind", known.get("kind")) == known.get("kind") else {}), **attack}
            group = "epsilon_l2" if filled.get("norm") == "l2" else "epsilon"
            own, radius = filled.get("epsilon"), radii[group]
            if own is not None and own not in (radius, str(radius)) and parse_fraction(own) != radius:
                raise ValueError(f"attacks.{name} has an epsilon of its own: all attacks of a norm share one, {group}")
            attacks[name] = filled if filled.get("kind") == "cw" else {**filled, "epsilon": radius}
        views: dict[str, Any] = {}
        for view, names in {**STANDARD_VIEWS, **given["views"]}.items():
            listed = (names,) if isinstance(names, str) else () if names is None else names
            if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
                raise ValueError(f"views.{view} is a list of names of attacks; got {names!r}")
            views[view] = tuple(name for name in dict.fromkeys(listed) if name not in removed)
        limits = {**STANDARD_LIMITS, **given["limits"], **dict.fromkeys(removed)}
        limits = {key: value for key, value in limits.items() if value is not None}
        return {**content, "attacks": attacks, "views": views, "limits": limits}

    @model_validator(mode="after")
    def _consistent(self) -> "AuditSettings":
        for name, attack in self.attacks.items():
            if attack.epsilon is None:
                raise ValueError(f"attacks.{name} ({attack.kind}) has no epsilon: its results would count at any distance")
        for view, names in self.views.items():
            for name in names:
                if name not in self.attacks:
                    raise ValueError(f"views.{view}: there is no attack '{name}'{nearest(name, self.attacks)}")
            if view != TRANSFER:
                refuse_gradients(view, {name: self.attacks[name] for name in names})
        return self

    @field_serializer("attacks")
    def _without_lengths(self, attacks: dict[str, AnyAttack]) -> dict[str, Any]:
        # Without lengths that follow from audit.epsilon, so that it can be changed in a written recipe; null keeps one removed.
        written: dict[str, Any] = {name: None for name in STANDARD_ATTACKS if name not in attacks}
        for name, attack in attacks.items():
            given = {"step_size"} & attack.model_fields_set
            written[name] = attack.model_dump(mode="json", exclude={"epsilon", "step_size"} - given)
        return written

    @field_serializer("limits")
    def _with_removed(self, limits: dict[str, int]) -> dict[str, Any]:
        return limits | {name: None for name in STANDARD_LIMITS if name not in limits}

    def resolved(self) -> dict[str, Any]:
        """The settings as JSON, every attack with all its numbers, for the record of an audit."""
        attacks = {name: attack.model_dump(mode="json") for name, attack in self.attacks.items()}
        return self.model_dump(mode="json") | {"attacks": attacks}

    def limit_of(self, attack: str, purifier: str) -> int:
        """The number of images that ``attack`` is run on for ``purifier``."""
        return min([self.images, *(self.limits[name] for name in (attack, purifier) if name in self.limits)])
