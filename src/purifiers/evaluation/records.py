"""The results of a run, as typed records in ``results.json``. Tables, figures and the report read only these."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from purifiers.errors import CheckpointError, MissingFileError
from purifiers.storage import write_text

RESULTS_FILE = "results.json"
VARIANT = "variant: "
"""Before the title of a recipe's variant, in ``purifier``."""
BASELINE = "baseline: "
"""Before the title of a recipe's baseline, in ``purifier``."""
CLEAN = "none"
"""The ``attack`` and the ``view`` of a row of clean images."""
_PACKAGES = ("purifiers", "torch", "numpy", "lightning-fabric", "foolbox", "pyautoattack", "torchmetrics", "scikit-learn")


class Result(BaseModel):
    """What all records are: typed, unchangeable, and without unknown fields when read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Result):
    """One purifier, in front of one classifier, under one attack and one view.

    Attributes:
        dataset, classifier, purifier: names.
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
            other numbers of those that were attacked (where none was left, of the versions that broke them).
    """

    dataset: str
    classifier: str
    purifier: str
    view: str
    attack: str
    norm: str | None
    epsilon: float | None
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


class AttackWarning(Result):
    """What an attack's library said against a number's trustworthiness."""

    view: str
    attack: str
    message: str


class Cost(Result):
    """What a network costs.

    Attributes:
        parameters: number of its parameters.
        flops: floating-point operations an image, in matrix products and convolutions.
        images_per_second: measured in the evaluation, on its device, in batches of ``batch_size``.
    """

    parameters: int
    flops: int
    images_per_second: float
    batch_size: int


class Results(Result):
    """Everything that a run measured.

    Attributes:
        recipe: the recipe, resolved, as it was evaluated.
        trained: the recipe as it was trained, where that is another: see :class:`purifiers.runs.Run`.
        seed: its seed.
        versions, hardware: what it ran with.
        seconds: wall-clock time: of all epochs of training, whenever they were run, and of this evaluation, in which
            attacks that were found in the cache count next to nothing.
        training: stage -> a record for each epoch.
        parameters: number of parameters of the purifier.
        peak_flops: floating-point operations a second of a large matrix product on this device, in the precision of the
            training; what the training achieved is ``images_per_second * flops_per_image`` of its epochs. None where the
            training ran on another kind of device.
        costs: of the classifier, the student and the baselines, by the names in ``purifier``, one after the other.
        classifier_sha256: :func:`purifiers.registry.fingerprint` of the classifier, the same before and after.
        records: flat list.
        warnings: from the attacks.
    """

    recipe: dict[str, Any]
    trained: dict[str, Any] | None = None
    seed: int
    versions: dict[str, str]
    hardware: dict[str, str | int]
    seconds: dict[str, float]
    training: dict[str, list[dict[str, float]]]
    parameters: int
    peak_flops: float | None
    costs: dict[str, Cost] = Field(default_factory=dict)
    classifier_sha256: str | None = None
    records: list[Record]
    warnings: list[AttackWarning]

    def write(self, folder: Path) -> None:
        """Write ``results.json`` into ``folder``, atomically."""
        write_text(folder / RESULTS_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Read ``folder``'s ``results.json``.

        Raises:
            MissingFileError: there is none.
            CheckpointError: it is damaged or was written by another version.
        """
        path = folder / RESULTS_FILE
        if not path.is_file():
            raise MissingFileError(f"no {RESULTS_FILE} in {folder}; 'purifiers evaluate' writes it")
        try:
            return cls.model_validate_json(path.read_text())
        except ValidationError as error:
            raise CheckpointError(f"{path} is damaged or of another version: {error.errors()[0]['msg']}") from error


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide numbers."""
    found = {"python": platform.python_version(), "commit": _commit()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # used from a source tree without being installed
            found[package] = "not installed"
    return found


def _commit() -> str:
    """The commit of the source tree that runs, marked where files differ from it; how else to know what was run?"""
    try:
        # Installed into somebody's project, the repository around is that project's.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "none (installed from a package)"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def hardware(device: torch.device) -> dict[str, str | int]:
    """The machine, in words: device, its name, threads, platform."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
