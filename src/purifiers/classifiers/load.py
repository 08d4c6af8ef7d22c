"""The classifier to protect: trained by us, or brought by the user and then only ever read."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purifiers import registry, weights
from purifiers.classifiers import CLASSIFIER_FORMS
from purifiers.classifiers.adapters import Fixed, Grey, Normalized, check_normalization
from purifiers.classifiers.exported import HOW, load_exported
from purifiers.classifiers.huggingface import load_transformers
from purifiers.classifiers.probes import are_probabilities, gradient_at, is_random, logits_of, relative_difference
from purifiers.console import progress, say
from purifiers.data import ImageSet, as_image_set, noise, slices, to_float
from purifiers.data.labels import PREDICTED
from purifiers.device import find_device
from purifiers.errors import ConfigError, InputError, nearest
from purifiers.forecast import current
from purifiers.registry import fingerprint, place
from purifiers.storage import parse_json

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
ALONE = 1e-2
"""An image's logits, alone and in a batch, agree up to this share of the largest: about the rounding of half precision."""


def load_classifier(
    source: str | Path,
    data: ImageSet | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    network: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Load a classifier in evaluation mode, without parameter gradients, and check it: images (N, 3, H, W), float32, in [0,1]
    -> logits (N, classes).

    One of grey images gets the luma of the data's, which a line says.

    Args:
        source: one of :data:`purifiers.classifiers.CLASSIFIER_FORMS`, for example ``cifar10-resnet56``.
        data: images that it must be able to classify, on whose device it is put. None: it is checked when it is first used.
        mean, std: the normalisation that it expects, in [0,1] units, one number or three in a list. None: it is inside.
        network: for a file of weights alone, the network: its name under ``network``, its arguments beside it.
        device: where there is no ``data``; by default the CPU.

    Raises:
        InputError: an argument is not of such a type.
        ConfigError: not one of these forms; a module or function that fails; a classifier that does not return finite logits
            for the data's classes, has no input gradient, is random, changes when it is called, or mixes images of a batch.
        MissingFileError, CheckpointError: see ``load_network``, ``load_exported``, ``load_transformers``.
    """
    if not (isinstance(source, str | Path) and isinstance(data, ImageSet | None)):
        raise InputError("a classifier is loaded by its name or place, and checked on an ImageSet; a module is used as it is")
    check_normalization(mean, std)
    source, shown = str(source), data or noise((32, 32))
    chosen = find_device(str(device or "cpu")) if data is None else data.images.device
    classifier = place(_open(source, shown, mean, std, network), chosen).requires_grad_(False)
    if data is not None:
        return adapt_classifier(classifier, source, data)
    classifier = _in_evaluation(classifier)
    with suppress(ConfigError):  # it may take another size
        return _for_channels(classifier, source, to_float(shown.images).to(chosen))
    return classifier


def adapt_classifier(classifier: nn.Module, source: str, data: ImageSet) -> nn.Module:
    """``classifier``, called ``source`` in messages, in evaluation mode and checked on ``data``, maybe behind an adapter. For
    errors see :func:`load_classifier`."""
    images = to_float(data.images[:2])
    classifier = _for_channels(_in_evaluation(classifier), source, images)
    _check(classifier, source, images, data.classes)
    return classifier


def completed(data: ImageSet, classifier: nn.Module, batch_size: int = 50) -> ImageSet:
    """``data`` with what only its classifier knows: as many classes, and, where there are no labels, its predictions as labels.
    Raises InputError for labels out of range, or where its logits are not finite."""
    if data.classes and not data.unlabelled:
        return data
    found = []
    if data.unlabelled and (plan := current()):
        pace = plan.passes(classifier, to_float(data.images[:1]), batch_size)
        plan.note(pace.seconds(len(data), len(data) / batch_size), len(data), "classifying images")
        data = replace(data, labels=torch.zeros_like(data.labels))
    with torch.no_grad(), progress(f"classifying {len(data):,} images", len(data)) as advance:
        for batch in slices(len(data) if data.unlabelled else 1, batch_size):
            found.append(logits_of("the classifier", classifier, to_float(data.images[batch])))
            advance(len(found[-1]))
    logits = torch.cat(found)
    if data.unlabelled:
        data = replace(data, labels=logits.argmax(1))
        say(f"{'labels':<16} the classifier's own predictions on {len(data):,} images, {len(data.labels.unique())} classes")
    return as_image_set(data, classes=logits.shape[1])


def check_form(classifier: nn.Module, source: str) -> None:
    """Refuse, with ConfigError, what is no module, cannot be frozen, or has no weights yet."""
    if not isinstance(classifier, nn.Module):
        raise ConfigError(f"the classifier '{source}' is a {type(classifier).__name__}; it must be a torch.nn.Module")
    tensors = [*classifier.parameters(), *classifier.buffers()]
    if any(isinstance(part, torch.jit.ScriptModule) for part in classifier.modules()):
        raise ConfigError(f"the classifier '{source}' is TorchScript, which cannot be frozen: give its source, or {HOW}")
    if any(nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.is_inference() for tensor in tensors):
        found = "has lazy layers, is on the device 'meta', or was made in torch.inference_mode()"
        raise ConfigError(f"the classifier '{source}' {found}: load its weights into a usual module first")


def _in_evaluation(classifier: nn.Module) -> nn.Module:
    try:
        return classifier.eval()
    except NotImplementedError:  # an exported program, or one with such a part
        return Fixed(classifier)


def watch(classifiers: Mapping[str, nn.Module]) -> Callable[[], None]:
    """A function that raises InputError if weights or buffers of ``classifiers`` have changed since this call."""
    before = {name: fingerprint(classifier) for name, classifier in classifiers.items()}

    def compare() -> None:
        for name, classifier in classifiers.items():
            if fingerprint(classifier) != before[name]:
                raise InputError(f"the weights or statistics of {name} changed while it was used: all results are invalid")

    return compare


def _for_channels(classifier: nn.Module, source: str, images: Tensor) -> nn.Module:
    """``classifier``, or, if it takes one channel where images have three, the same behind :class:`Grey`."""
    name = f"the classifier '{source}'"
    with torch.no_grad():
        try:
            logits_of(name, classifier, images, ConfigError)
        except ConfigError as fault:
            grey = place(Grey(classifier), images.device).eval()
            try:
                logits_of(name, grey, images, ConfigError)
            except ConfigError as other:
                first = next((part for part in classifier.modules() if isinstance(part, nn.Conv2d)), None)
                raise (other if first is not None and first.in_channels == 1 else fault) from None
            say(f"{'classifier':<16} it takes one channel: it is given the luma of the images, which stay RGB")
            return grey
    return classifier


def _check(classifier: nn.Module, source: str, images: Tensor, classes: Sequence[str]) -> None:
    """Refuse, with ConfigError, a classifier that cannot be defended or attacked."""
    name, before = f"the classifier '{source}'", fingerprint(classifier)
    with torch.no_grad():
        logits, alone = (logits_of(name, classifier, batch, ConfigError) for batch in (images, images[:1]))
    if are_probabilities(logits).all():
        found = f"the outputs of {name} lie in [0,1] and sum to 1: they are probabilities, whose gradient vanishes"
        say(f"warning: {found}, so that attacks look weaker than they are; return the logits, from before the softmax")
    if classes and logits.shape[1] != len(classes):
        named = f"{len(classes)} ({', '.join(classes[:10])})"
        advice = f"name its classes with --classes FILE, or take its predictions as labels: --labels {PREDICTED}"
        fault = f"has {logits.shape[1]} classes, and the images have {named}: they need the same, in one order; or {advice}"
    elif fingerprint(classifier) != before:
        fault = "changes when it is called, as BatchNorm in training mode does: call no train() in it; export it after eval()"
    elif is_random(classifier, images):
        fault = "returns different logits for the same images; it must be deterministic: is there dropout or noise in it?"
    elif (relative_difference(logits[:1], alone) > ALONE).any():
        fault = "returns different logits for an image alone and in a batch: does its BatchNorm ignore evaluation mode?"
    else:
        fault = _gradient_fault(classifier, images, logits)
    if fault:
        raise ConfigError(f"{name} {fault}")


def _gradient_fault(classifier: nn.Module, images: Tensor, logits: Tensor) -> str:
    without = "passes no gradient to its input; it cannot be attacked or trained against"
    try:
        gradient = gradient_at(classifier, images)
    except RuntimeError as error:
        return f"{without} ({error})"
    if not gradient.isfinite().all():
        return "has a gradient that is not finite"
    # One with the same logits for all images has no gradient either; its accuracy shows that.
    lost = not gradient.any() and not torch.equal(logits[0], logits[-1])
    return f"{without}: does it detach, round or threshold its images?" if lost else ""


def build_classifier(network: Mapping[str, Any], classes: int) -> nn.Module:
    """The untrained ``network`` (its name under ``network``, arguments beside it) for ``classes`` classes."""
    arguments = {key: value for key, value in network.items() if key != "network"}
    return registry.build_network(network["network"], {**arguments, "num_classes": classes})


def _open(
    source: str, data: ImageSet, mean: Sequence[float] | None, std: Sequence[float] | None, network: Mapping[str, Any] | None
) -> nn.Module:
    """The classifier that ``source`` names, on the CPU, unchecked. ``mean`` and ``std`` replace those of ``network`` or of a
    Hugging Face model's files, and go before anything else."""
    path = weights.locate(source)
    if source.startswith(weights.HUB) or _is_transformers(path):
        return load_transformers(source.removeprefix(weights.HUB), data, mean, std)
    if source.startswith(f"{weights.MEMORY}:"):
        raise ConfigError(f"'{source}' was passed from Python and is not on disk: name the classifier with --classifier")
    if path.suffix == ".safetensors":
        if _is_transformers(path.parent):
            raise ConfigError(f"{path} belongs to a Hugging Face model: give its folder, {path.parent}")
        if not data.classes or network is None:
            advice = "give --recipe or --data-dir, or a saved network's folder (in Python: data=, network=)"
            raise ConfigError(f"{path} holds weights alone, and their network or its classes are not known: {advice}")
        own = {key: list(value) * (3 // len(value)) for key, value in (("mean", mean), ("std", std)) if value}
        classifier = build_classifier({**network, **own}, len(data.classes))
        registry.load_weights(classifier, path)
        return classifier
    if path.is_dir():
        if mean is not None:
            raise ConfigError(f"the classifier in {path} has its normalisation inside: leave out mean and std")
        classifier = registry.load_network(path)
        if getattr(classifier, "output", None) != "logits":
            raise ConfigError(f"'{source}' is a purifier; expected a classifier")
        return classifier
    if path.suffix in PICKLES:
        anew = f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), '{path.stem}.safetensors')"
        raise ConfigError(
            f"{path} is a pickle, which can run code when it is opened, so it is not read. If you trust it: for weights of the "
            f"recipe's network,  {anew}  writes a file to give; else give a module:function that returns the classifier"
        )
    if path.suffix != ".pt2" and ":" not in source:
        module, hint = source.removesuffix(".py"), nearest(source, weights.CLASSIFIERS)
        with registry.user_modules():
            if all(map(str.isidentifier, module.split("."))) and find_spec(module.split(".")[0]) is not None:
                raise ConfigError(f"'{source}' is a module: name its function that returns the classifier, {module}:function")
        raise ConfigError(f"cannot load a classifier from '{source}'{hint} (give {CLASSIFIER_FORMS})")
    classifier = load_exported(path) if path.suffix == ".pt2" else _call(source)
    return classifier if mean is None or std is None else Normalized(classifier, mean, std)


def _is_transformers(folder: Path) -> bool:
    """Is this the folder of a Hugging Face model? The library's own name a ``network`` in their config.json."""
    try:
        config: Any = parse_json((folder / registry.CONFIG_FILE).read_bytes(), registry.CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "network" not in config and ("model_type" in config or "architectures" in config)


def _call(source: str) -> nn.Module:
    build = registry.resolve(source, "classifier")
    if not callable(build):
        raise ConfigError(f"'{source}' is a {type(build).__name__}; it must be a function that returns a torch.nn.Module")
    try:
        with registry.user_modules():
            classifier = build()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"calling the classifier '{source}' failed: {registry.located(error)}") from error
    check_form(classifier, source)
    return classifier
