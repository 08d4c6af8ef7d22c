"""The keys of a recipe. Each class is a group of keys in the YAML file; unknown keys are refused."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from purifiers.attacks import VIEWS, AnyAttack
from purifiers.classifiers.adapters import check_normalization
from purifiers.device import Precision
from purifiers.errors import nearest
from purifiers.kinds import Group
from purifiers.recipes.audit_settings import AuditSettings, refuse_gradients
from purifiers.recipes.baseline_settings import AnyBaseline, Untrained, folder_of
from purifiers.recipes.parts import Data, NetworkConfig, Place, Positive, checked, folder_name
from purifiers.recipes.training_settings import PLACES, Latent, PurifierConfig, Student, Supervised, TeacherAT, TeacherNT
from purifiers.registry import NETWORKS
from purifiers.weights import anywhere

Names = Annotated[tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)]
RESNET56: dict[str, Any] = {"network": "resnet", "depth": 56}
ADAPTIVE = "adaptive"  # in ``evaluation.limits``: all attacks under the other views than ``blind``


class Classifier(Group):
    """The classifier to protect: trained here as ``network``, or taken from ``source`` and only ever read.

    ``source``: one of :data:`purifiers.classifiers.CLASSIFIER_FORMS`; images in [0,1] -> logits.
    ``mean`` and ``std``: the normalisation that the source expects, in [0,1] units: a number for each channel, or one for all.
    None: it is inside, or, of a Hugging Face model, in its preprocessor_config.json.
    """

    source: Place | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    network: NetworkConfig = NetworkConfig(**RESNET56)
    training: Supervised | None = None

    def options(self) -> dict[str, Any]:
        """The options of :func:`purifiers.classifiers.load.load_classifier` besides the source."""
        return {"mean": self.mean, "std": self.std, "network": self.network.model_dump()}

    def behind(self, source: str) -> "Classifier":
        """The same with ``source``; another one comes without this one's normalisation."""
        if self.source is not None and anywhere(source) == self.source:
            return self
        return self.model_copy(update={"source": anywhere(source), "mean": None, "std": None})

    @field_validator("network", mode="before")
    @classmethod
    def _resnet_if_unnamed(cls, network: object) -> object:
        """Options alone, such as ``classifier.network.depth=20`` over a recipe without this group, are those of the default."""
        return {**RESNET56, **network} if isinstance(network, dict) and "network" not in network else network

    @field_validator("network")
    @classmethod
    def _maps_to_logits(cls, network: NetworkConfig) -> NetworkConfig:
        if getattr(NETWORKS[network.network], "output", None) != "logits":
            valid = [name for name, one in NETWORKS.items() if getattr(one, "output", None) == "logits"]
            raise ValueError(f"'{network.network}' is not a classifier{nearest(network.network, valid)}")
        return network

    @model_validator(mode="after")
    def _consistent(self) -> "Classifier":
        if self.source is None and self.training is None:
            raise ValueError("needs either a source or a group 'training'")
        check_normalization(self.mean, self.std)
        if self.training is not None and self.training.trades and self.training.attack is None:
            raise ValueError("training.trades compares clean with adversarial images: set training.attack too")
        if self.source is None and self.mean is not None:
            raise ValueError("mean and std belong to a source; of a network that is trained here, set network.mean and .std")
        return self


class Evaluation(Group):
    """Attacks by the names that the tables show (null removes one), and the views under which each is run.

    ``views``: always with ``blind``, Table 1's; the others run the attacks in ``adaptive_attacks`` (all if empty).
    ``limits``: an attack's name -> the number of random test images it is run on, where it is too slow for all; the name
    ``adaptive`` stands for all attacks under the other views than ``blind``.
    """

    attacks: dict[str, AnyAttack] = Field(min_length=1)
    views: Names = Field(default=("blind",), min_length=1)
    adaptive_attacks: Names = ()
    limits: dict[str, Positive] = Field(default_factory=dict)
    batch_size: Positive = 250

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, content: Any) -> Any:
        attacks, limits = (content.get(key) if isinstance(content, Mapping) else None for key in ("attacks", "limits"))
        if not isinstance(attacks, Mapping):
            return content
        kept = {name: attack for name, attack in attacks.items() if attack is not None}
        if isinstance(limits, Mapping):
            limits = {name: limit for name, limit in limits.items() if name in kept or name not in attacks}
        return {**content, "attacks": kept, **({} if limits is None else {"limits": limits})}

    @field_validator("views")
    @classmethod
    def _known_views(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        for view in views:
            checked(VIEWS, view)
        return views if "blind" in views else ("blind", *views)

    @model_validator(mode="after")
    def _known_attacks(self) -> "Evaluation":
        for name in self.adaptive_attacks:
            if name not in self.attacks:
                known = ", ".join(self.attacks)
                raise ValueError(f"adaptive_attacks names '{name}', but the attacks are {known}; set adaptive_attacks too")
        for name in self.limits:
            if name not in self.attacks and name != ADAPTIVE:
                raise ValueError(f"limits names '{name}'{nearest(name, [*self.attacks, ADAPTIVE])}; set limits too")
        for view in self.views:
            refuse_gradients(view, self.attacks_under(view))
        return self

    def attacks_under(self, view: str) -> dict[str, AnyAttack]:
        """The attacks to run under ``view``."""
        if view == "blind" or not self.adaptive_attacks:
            return dict(self.attacks)
        return {name: self.attacks[name] for name in self.adaptive_attacks}

    def limit_of(self, view: str, attack: str) -> int | None:
        """On how many test images ``attack`` is run under ``view``; None for all."""
        names = [attack] if view == "blind" else [attack, ADAPTIVE]
        return min((self.limits[name] for name in names if name in self.limits), default=None)


class Recipe(Group):
    """A whole run: data, classifier, purifier, the attacks that are trained against, three trainings, the evaluation.

    ``name``: of its folder in ``runs`` too, so a plain file name.
    ``companions``: further classifiers, so that the purifier does not rely on the errors of one: they take equal shares of
    training attacks and guidance, and are never evaluated.
    ``purifier``: the network of the teachers, and of the student where it has none of its own.
    Of ``training_attacks``, ``baselines`` and ``variants`` null removes one, by its name.
    ``training_attacks``: every training image is attacked ``attack_rounds`` times, each time by one of the attacks on one
    of the classifiers, in equal shares drawn by the seed; a batch takes one of an image's rounds at random. Empty
    where all trainings have an ``attack`` of their own, or ``noise`` to remove.
    ``precision``: of networks in training, and of classifiers under training attacks, whose images stay float32; attacks
    of the evaluation are float32 throughout. ``auto``: the faster one of the machine on which a run is begun, which keeps it.
    ``compiled``: meant for a GPU, where each training step becomes one CUDA graph if nothing in it waits for the device (an
    attack in every step does). What cannot, and everything on a CPU, goes through ``torch.compile``.
    ``both_inputs``: Table 2 also has students whose teacher NT gets the input that ``student.nt_teacher_input`` is not.
    ``weights``: names of shipped weights, by stage, of what this recipe trains.
    ``baselines``: other people's purifiers to compare with in Table 1, by the titles of their rows.
    ``variants``: for the table of ingredients: title -> changes by dotted key. The first is the base of the others: they take
    its changes too.
    """

    name: str = Field(pattern=r"^\w[^/\\[:cntrl:]]*$")
    seed: int = Field(default=0, ge=0)
    precision: Literal[Precision, "auto"] = "32-true"
    compiled: bool = False
    data: Data
    classifier: Classifier
    companions: tuple[Classifier, ...] = ()
    purifier: PurifierConfig
    training_attacks: dict[str, AnyAttack] = Field(default_factory=dict)
    attack_rounds: Positive = 1
    latent: Latent | None = None
    teacher_at: TeacherAT
    teacher_nt: TeacherNT
    student: Student
    both_inputs: bool = False
    evaluation: Evaluation
    audit: AuditSettings = Field(default_factory=AuditSettings)  # type: ignore[arg-type]
    weights: dict[str, str] = Field(default_factory=dict)
    baselines: dict[str, AnyBaseline] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def classifiers(self) -> dict[str, Classifier]:
        """The classifier to protect and its companions, by the names of their stages."""
        return {"classifier": self.classifier} | {f"companion_{i}": one for i, one in enumerate(self.companions, start=1)}

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        groups = {key: content.get(key) for key in ("training_attacks", "baselines", "variants")}
        kept = {
            key: {name: one for name, one in group.items() if one is not None}
            for key, group in groups.items()
            if isinstance(group, Mapping)
        }
        return {**content, **kept}

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        purifier = self.purifier.arguments
        if not self.teacher_nt.epochs and not purifier.get("residual") and "NT" in self.student.teachers:
            raise ValueError("teacher_nt.epochs must be > 0 when purifier.residual is false and student.teachers names NT")
        if not self.teacher_at.epochs and self.teacher_at.start is None and self.latent is None:
            raise ValueError("teacher_at.epochs is 0, which is for a teacher that is trained already: name it as start")
        stages = {"teacher_at": self.teacher_at, "student": self.student}
        if self.latent is not None:
            if self.teacher_at.start is not None:
                raise ValueError("teacher_at.start: with a group latent, teacher AT starts from its decoder")
            if not self.latent.decoder.epochs:
                raise ValueError("latent.decoder.epochs must be > 0")
            if self.latent.decoder.start is not None:
                raise ValueError("latent.decoder.start: the decoder starts from the encoder that is trained before it")
            if purifier.get("residual") or purifier.get("skip_every", 2):
                raise ValueError("latent: skips carry perturbations around it; set purifier.skip_every=0, no residual")
            stages["latent.decoder"] = self.latent.decoder
        trained = {name: one for name, one in stages.items() if one.epochs}
        idle = [name for name, one in trained.items() if one.attack is None and not one.noise and one.clean_share < 1]
        if idle and not self.training_attacks:
            raise ValueError(f"training_attacks is empty, and {idle[0]} has neither an attack of its own nor noise")
        if self.student.teacher_once and not self.training_attacks:
            raise ValueError("student.teacher_once: there are no training_attacks whose images the teacher would purify")
        return self

    @model_validator(mode="after")
    def _baselines_apart(self) -> "Recipe":
        known = ["student"]
        for title, baseline in self.baselines.items():
            if folder_of(title) in map(folder_of, (*known, "", "ours", "no purifier")):
                apart = "differ in letters or digits from each other, and from 'student', 'ours' and 'no purifier'"
                raise ValueError(f"baselines: titles have to {apart}; got '{title}'")
            if isinstance(baseline, Untrained) and baseline.around is not None and baseline.around not in known:
                hint = nearest(baseline.around, known)
                raise ValueError(f"baselines.{title}.around: nothing before it is called '{baseline.around}'{hint}")
            known.append(title)
        return self

    @field_validator("variants")
    @classmethod
    def _variants_apart(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        folders = [folder_name(title) for title in variants]
        for title, folder in zip(variants, folders, strict=True):
            if not folder or folders.count(folder) > 1:
                raise ValueError(f"titles have to differ from each other in letters or digits; got '{title}'")
        return {title: _with_places(changes) for title, changes in variants.items()}

    @field_validator("weights")
    @classmethod
    def _stages_with_weights(cls, weights: dict[str, str]) -> dict[str, str]:
        stages = ["classifier", "student", "companion_1"]
        for stage in weights:  # of companions that were set to none too
            if re.sub(r"^companion_[1-9]\d*$", "companion_1", stage) not in stages:
                raise ValueError(f"there is no stage '{stage}'{nearest(stage, stages)}; there are {', '.join(stages)}")
        return weights


def _with_places(value: Any, key: str = "") -> Any:
    """``value`` of the dotted ``key`` with the files and folders in it made absolute."""
    if isinstance(value, Mapping):
        return {name: _with_places(one, name) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_places(one) for one in value]
    resolve = PLACES.get(key.rpartition(".")[2])
    return resolve(value) if resolve is not None and isinstance(value, str) else value
