"""The classifier to protect: trained by us, or brought by the user and then only ever read."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.classifiers.adapters import Fixed, Grey
from purifiers.classifiers.probes import are_probabilities, gradient_at, is_random, logits_of, relative_difference
from purifiers.classifiers.sources import open_source
from purifiers.console import say
from purifiers.data import ImageSet, noise, slices, to_float
from purifiers.errors import ConfigError, InputError
from purifiers.registry import fingerprint, place

NOISE = noise((32, 32))
"""What stands for images of which nothing is known."""
ALONE = 1e-2
"""An image's logits, alone and in a batch, agree up to this share of the largest. Rounding differs with the batch, in
half precision by about this much; BatchNorm in training mode does far more."""


def load_classifier(
    source: str,
    data: ImageSet | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    network: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Load a classifier in evaluation mode, without parameter gradients, and check it: images (N, 3, H, W), float32, in [0,1]
    -> logits (N, classes).

    One of grey images gets the luma of the data's, which a line says.

    Args:
        source: one of :data:`purifiers.classifiers.CLASSIFIER_FORMS`, for example ``cifar10-resnet56``.
        data: images that it must be able to classify, on whose device it is put. None: it is checked when it is first used.
        mean, std: the normalisation that it expects, in [0,1] units, one number or one per channel. None: it is inside.
        network: for a file of weights alone, the network: its name under ``network``, its arguments beside it.
        device: where there is no ``data``.

    Raises:
        ConfigError: not one of these forms; a module or function that fails; a classifier that does not return finite logits
            for the data's classes, has no input gradient, is random, changes when it is called, or mixes images of a batch.
        MissingFileError, CheckpointError: see ``load_network``, ``load_exported``, ``load_transformers``.
    """
    classifier = place(open_source(source, data or NOISE, mean, std, network), device if data is None else data.images.device)
    try:
        classifier.eval()
    except NotImplementedError:  # an exported program, or one with such a part
        classifier = Fixed(classifier)
    classifier.requires_grad_(False)
    if data is not None:
        return adapt_classifier(classifier, source, data)
    with suppress(ConfigError):  # it may take another size
        return _for_channels(classifier, source, to_float(NOISE.images).to(device))
    return classifier


def adapt_classifier(classifier: nn.Module, source: str, data: ImageSet) -> nn.Module:
    """``classifier``, in evaluation mode and called ``source`` in messages, checked on ``data``: as it is, or behind a
    conversion to grey; see :func:`load_classifier`."""
    images = to_float(data.images[:2])
    classifier = _for_channels(classifier, source, images)
    check_classifier(classifier, source, images, data.classes)
    return classifier


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


def check_classifier(classifier: nn.Module, source: str, images: Tensor, classes: Sequence[str] = ()) -> None:
    """Refuse, with ConfigError, a classifier that cannot be defended or attacked; see :func:`load_classifier`.

    ``classifier`` is in evaluation mode and called ``source`` in messages; ``images``: float32 (N, 3, H, W), in [0,1], two or
    more; ``classes``: their names, empty where they are not known.
    """
    name, before = f"the classifier '{source}'", fingerprint(classifier)
    with torch.no_grad():
        logits, alone = (logits_of(name, classifier, batch, ConfigError) for batch in (images, images[:1]))
    if are_probabilities(logits).all():
        effect = "whose gradient vanishes, so that attacks look weaker than they are"
        say(f"warning: the outputs of {name} are probabilities, {effect}; return the logits, from before the softmax")
    random = is_random(classifier, images)
    if classes and logits.shape[1] != len(classes):
        named = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        fault = f"has {logits.shape[1]} classes, and the images have {len(classes)} ({named}): they need the same, in one order"
    elif not logits.isfinite().all():
        fault = "must return finite logits; those of the first images are not"
    elif fingerprint(classifier) != before:
        fault = "changes when it is called, as BatchNorm in training mode does: call no train() in it; export it after eval()"
    elif random:
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


def accuracy(classifier: nn.Module, data: ImageSet, batch_size: int = 500) -> float:
    """Share of ``data`` that is classified correctly, in [0,1]; raises InputError for logits that are not finite."""
    with torch.no_grad():
        logits = torch.cat([classifier(to_float(data.images[batch])) for batch in slices(len(data), batch_size)])
    if odd := int((~logits.isfinite().all(1)).sum()):
        raise InputError(f"the classifier returns NaN or infinite logits for {odd} of {len(data)} images of '{data.name}'")
    return (logits.argmax(1) == data.labels).sum().item() / len(data)
