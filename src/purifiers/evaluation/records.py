"""Results as typed records in JSON files. Tables, figures and reports read only these."""

import platform
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from purifiers.attacks import Attack, titles
from purifiers.errors import CheckpointError, MissingFileError
from purifiers.storage import write_text

VARIANT = "variant: "
"""Before the title of a recipe's variant, in ``purifier``."""
BASELINE = "baseline: "
"""Before the title of a recipe's baseline, in ``purifier``."""
CLEAN = "none"
"""The ``attack`` and the ``view`` of a row of clean images."""
PREDICTED = "There were no labels: the classifier's own predictions on clean images stand for them, so accuracy is agreement."
"""What every table of such records says."""
_PACKAGES = ("purifiers", "torch", "numpy", "lightning-fabric", "foolbox", "pyautoattack", "torchmetrics", "scikit-learn")


class Result(BaseModel):
    """Base of all records: typed, read-only, and without unknown fields when read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ResultFile(Result):
    """Base of all results that are written to a file, ``filename``, in a folder by ``command``.

    Attributes:
        seed: decided all random choices.
        versions, hardware: of what computed them.
    """

    filename: ClassVar[str]
    command: ClassVar[str]

    seed: int
    versions: dict[str, str]
    hardware: dict[str, str | int]

    def write(self, folder: Path | str) -> None:
        """Write the file into ``folder``, atomically."""
        write_text(Path(folder) / self.filename, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read ``folder``'s file.

        Raises:
            MissingFileError: there is none.
            CheckpointError: it is damaged or was written by another version.
        """
        path = Path(folder) / cls.filename
        if not path.is_file():
            raise MissingFileError(f"no {cls.filename} in {folder}; 'purifiers {cls.command}' writes it")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise CheckpointError(f"{path} is damaged or of another version: {error.errors()[0]['msg']}") from error


class Record(Result):
    """One purifier, in front of one classifier, under one attack and one view.

    Attributes:
        dataset, classifier, purifier: names.
        labels_predicted: the labels are the classifier's own predictions on clean images: every accuracy here is an agreement.
        view: what the attacker differentiated (``blind``, ``full``, ...; ``none`` for clean images).
        attack: its name in the recipe; ``none`` is the clean row.
        norm, epsilon: the attack's ball; epsilon in [0,1] units, None where the attack has none.
        n: number of images.
        accuracy_undefended: share of the attacked images that the classifier alone gets right (equation 7).
        accuracy: the same after purification.
        agreement: share whose class after purification is the classifier's class for the original image (equation 7
            as the paper's section 4.1 words it).
        ci95: 95 % Wilson interval of ``accuracy``.
        psnr, ssim: of the purified against the original image, mean over images; PSNR in dB.
        l2: median L2 distance of the attacked images to the originals.
        seconds: time that the attack took.
        attacked: on how many of the images the attack was run, in an audit's cascade, where images that an earlier attack
            broke are not attacked again and count as broken; None: on all. ``accuracy`` and ``ci95`` are of all ``n``, the
            other numbers of those that were attacked (if none was left, of the versions that broke them).
        not_finite: for how many images a logit after purification is NaN or infinite; they count as wrong.
    """

    dataset: str
    classifier: str
    purifier: str
    labels_predicted: bool = False
    view: str = CLEAN
    attack: str = CLEAN
    norm: str | None = None
    epsilon: float | None = None
    n: int
    accuracy_undefended: float
    accuracy: float
    agreement: float
    ci95: tuple[float, float]
    psnr: float
    ssim: float | None
    l2: float
    seconds: float
    attacked: int | None = None
    not_finite: int = 0

    @property
    def on_classifier(self) -> bool:
        """Whether these images are clean or made on the classifier alone, so that its accuracy without the purifier means
        something: under other views they are made for another model."""
        return self.view in (CLEAN, "blind")


class AttackWarning(Result):
    """What speaks against a number: reports of the attack's library, or logits that are not finite.

    Attributes:
        model: the purifier or classifier that the attack was run on; empty where that is the run's classifier.
        left_out: the attack cannot run on it, so that there is no number.
    """

    view: str
    attack: str
    message: str
    model: str = ""
    left_out: bool = False

    def __str__(self) -> str:
        parts = [self.model, "left out" if self.left_out else "", self.message]
        return f"{self.attack}, view {self.view}: " + ": ".join(filter(None, parts))


def not_finite(records: Sequence[Record]) -> list[AttackWarning]:
    """A warning for each of ``records`` with logits that are not finite."""
    found = []
    for one in (record for record in records if record.not_finite):
        message = f"logits are NaN or infinite for {one.not_finite} of {one.attacked or one.n} images"
        found.append(AttackWarning(view=one.view, attack=one.attack, model=one.purifier, message=message))
    return found


class Cost(Result):
    """The cost of a network.

    Attributes:
        parameters: number of its parameters.
        flops: floating-point operations an image, in matrix products and convolutions.
        images_per_second: measured in the evaluation, on its device, in batches of ``batch_size``.
    """

    parameters: int
    flops: int
    images_per_second: float
    batch_size: int


def read_attacks(settings: Mapping[str, Any]) -> dict[str, Attack]:
    """Attacks by name from their ``settings`` in a recipe, without those whose code is not found here."""
    found = {}
    for name, one in settings.items():
        with suppress(ValueError):
            found[name] = cast(Attack, Attack.parse(one))
    return found


class Records(ResultFile, ABC):
    """Base of results that consist of records.

    Attributes:
        records: flat list.
        warnings: from the attacks.
    """

    records: list[Record]
    warnings: list[AttackWarning]

    def attacks(self) -> dict[str, Attack]:
        """The attacks by the names in the records, without those whose code is not found here."""
        return read_attacks(self._settings())

    @abstractmethod
    def _settings(self) -> Mapping[str, Any]:
        """The attacks' settings by name."""

    def titles(self) -> dict[str, str]:
        """The attacks' titles by the names in the records."""
        return titles(self.attacks())

    def titled(self) -> Self:
        """The same with the attacks' titles in place of their names, for reports."""
        named = self.titles()
        shown = {
            key: [one.model_copy(update={"attack": named.get(one.attack, one.attack)}) for one in getattr(self, key)]
            for key in ("records", "warnings")
        }
        return self.model_copy(update=shown)

    def __str__(self) -> str:
        """A table of the records, and what to know about them."""
        shown = self.titled()
        rows: list[tuple[str, ...]] = [("purifier", "view", "attack", "images", "undefended", "accuracy", "95 % interval")]
        for one in shown.records:
            undefended = f"{one.accuracy_undefended:.1%}" if one.on_classifier else "-"
            accuracy, *interval = [f"{share:.1%}" for share in (one.accuracy, *one.ci95)]
            rows.append((one.purifier, one.view, one.attack, f"{one.n:,}", undefended, accuracy, " - ".join(interval)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if any(one.labels_predicted for one in self.records):
            lines.append(PREDICTED)
        return "\n".join(lines + [f"warning: {one}" for one in shown.warnings])


class Results(Records):
    """Everything that an evaluation measured.

    Attributes:
        recipe: the run's recipe, resolved, as it was evaluated; for modules in memory its ``evaluation.attacks`` alone.
        trained: the recipe as it was trained, if that is another: see :class:`purifiers.runs.Run`.
        seconds: wall-clock time: of all epochs of training, whenever they were run, and of this evaluation, in which
            attacks that were found in the cache count next to nothing.
        training: stage -> a record for each epoch; ``images_per_second * flops_per_image`` is what it achieved of
            ``peak_flops``.
        parameters: number of parameters of the purifier.
        peak_flops: floating-point operations a second of a large matrix product, in the training's precision; None if the
            training ran on another kind of device.
        costs: of the classifier, the student and the baselines, by the names in ``purifier``, one after the other.
        classifier_sha256: :func:`purifiers.registry.fingerprint` of the classifier, the same before and after.
    """

    filename = "results.json"
    command = "evaluate"

    recipe: dict[str, Any] = Field(default_factory=dict)
    trained: dict[str, Any] | None = None
    seconds: dict[str, float]
    training: dict[str, list[dict[str, float]]] = Field(default_factory=dict)
    parameters: int
    peak_flops: float | None = None
    costs: dict[str, Cost] = Field(default_factory=dict)
    classifier_sha256: str | None = None

    def _settings(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.recipe.get("evaluation", {}).get("attacks", {})
        return found


def provenance(seed: int, device: torch.device) -> dict[str, Any]:
    """The fields of a :class:`ResultFile` that say what computed it."""
    return {"seed": seed, "versions": versions(), "hardware": hardware(device)}


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide numbers."""
    found = {"python": platform.python_version(), "commit": _commit(), **dict.fromkeys(_PACKAGES, "not installed")}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):  # used from a source tree without being installed
            found[package] = version(package)
    return found


def _commit() -> str:
    """The commit of the source tree that runs, marked if files differ from it."""
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    try:
        # Installed into somebody's project, the repository around is that project's.
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])
        return git(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none (installed from a package)"


def hardware(device: torch.device) -> dict[str, str | int]:
    """The machine: device, its name, threads, platform."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    system = f"{platform.system()} {platform.machine()}"
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "platform": system}
