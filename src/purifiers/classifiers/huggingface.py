"""Image classifiers of Hugging Face transformers, by folder or by name on the hub, as plain modules: images -> logits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from purifiers.classifiers.adapters import Normalized, Resized
from purifiers.console import say
from purifiers.data import ImageSet, to_float
from purifiers.data.labels import spelled
from purifiers.errors import CheckpointError, ConfigError, MissingFileError, first_line, require
from purifiers.registry import CONFIG_FILE

PREPROCESSOR = "preprocessor_config.json"


def load_transformers(
    where: str, data: ImageSet, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> nn.Module:
    """The image classifier at ``where``, a folder or a name on the hub, on the CPU; a printed line describes it.

    Its normalisation is ``mean`` and ``std``, or else that of its preprocessor_config.json. Images of another size than that
    file has, or than it takes, are resized in it. Where its labels are the data's classes in another order, its logits are put
    in the data's; where they are others, a line warns.

    Raises:
        ConfigError: transformers is missing; it is no such classifier or needs code of its own, or no normalisation is known.
        MissingFileError, CheckpointError: no such model, or no weights as safetensors; they are damaged or not complete.
    """
    local = _is_folder(where)
    network = _load(where, local)
    settings = _preprocessing(where, local)
    if not mean or not std:
        mean, std = _normalization(settings, where)
    order = _order(getattr(network.config, "id2label", None) or {}, data.classes)
    classifier = Normalized(_Logits(network, order, bool(settings.get("do_flip_channel_order"))), mean, std)
    numbers = [",".join(f"{one:.4g}" for one in values) for values in (mean, std)]
    say(f"{'classifier':<16} {type(network).__name__}, mean {numbers[0]}, std {numbers[1]}")
    if order is not None:
        say(f"{'':<16} its classes are put in the order of the images' classes: {', '.join(data.classes)}")
    size, height, width = _size(settings), *data.images.shape[-2:]
    runs, own = _runs(classifier, data), getattr(network.config, "image_size", None)
    if size is None and not runs and isinstance(own, int):
        size = own, own
    if size is not None and size != (height, width):
        other = "the network takes that size too" if runs else "the network takes no other size"
        say(f"{'':<16} images of {height} x {width} are resized to {size[0]} x {size[1]} inside it, as its files ask ({other})")
    return classifier if size is None else Resized(classifier, size)


class _Logits(nn.Module):
    """A transformers model as a plain one: normalised images -> logits."""

    order: Tensor | None

    def __init__(self, network: nn.Module, order: Sequence[int] | None, flip: bool) -> None:
        super().__init__()
        self.network = network
        self.flip = flip
        self.register_buffer("order", None if order is None else torch.tensor(order), persistent=False)

    def extra_repr(self) -> str:
        return "BGR" if self.flip else ""  # a part of the fingerprint that cached adversarial examples are found by

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images.flip(1) if self.flip else images).logits
        return logits if self.order is None else logits[:, self.order]


def _is_folder(where: str) -> bool:
    """Whether it is a folder, and not a name on the hub; what a folder must hold is checked."""
    folder = Path(where)
    if not folder.is_dir():
        if where.count("/") > 1 or where.startswith((".", "/", "~")):
            raise MissingFileError(f"there is no folder {where}")
        return False
    if not (folder / CONFIG_FILE).is_file():
        raise MissingFileError(f"{folder} holds no {CONFIG_FILE}, which every Hugging Face model has")
    return True


_NO_SAFETENSORS = (
    "'{where}' holds no weights as safetensors: pickles can run code when they are opened, so they are not read. If you trust "
    "them:  transformers.AutoModelForImageClassification.from_pretrained('{where}').save_pretrained('NEW')  writes NEW to pass"
)


def _load(where: str, local: bool) -> Any:
    transformers = require("transformers")
    try:
        with _quiet(local):
            network, found = transformers.AutoModelForImageClassification.from_pretrained(
                where, use_safetensors=True, local_files_only=local, trust_remote_code=False, output_loading_info=True
            )
    except SafetensorError as error:
        raise CheckpointError(f"the weights of '{where}' are damaged ({error}); copy or download them again") from error
    except OSError as error:
        if "safetensors" in str(error):
            raise MissingFileError(_NO_SAFETENSORS.format(where=where)) from error
        if local:
            raise CheckpointError(f"{Path(where) / CONFIG_FILE} is damaged ({first_line(error)})") from error
        advice = "Without a network pass the folder of a downloaded model"
        raise MissingFileError(f"cannot get '{where}' from the Hugging Face hub: {first_line(error)} {advice}") from error
    except Exception as error:  # of many kinds, as it fails wherever the fault is
        if "for this kind of AutoModel" in str(error):
            kind = transformers.AutoConfig.from_pretrained(where, local_files_only=local, trust_remote_code=False).model_type
            raise ConfigError(f"'{where}' is no image classifier: transformers has none of the kind '{kind}'") from error
        raise ConfigError(f"transformers cannot load '{where}': {first_line(error)}") from error
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("num_batches_tracked"))
    if missing:
        names = ", ".join(missing[:4]) + (" and others" if len(missing) > 4 else "")
        raise CheckpointError(f"'{where}' holds no weights for {names}, which would be drawn at random: no trained head?")
    if network.config.problem_type == "multi_label_classification":
        raise ConfigError(f"'{where}' is a multi-label classifier; one class an image is needed")
    return network.float()  # some are stored in half precision, in which attacks lose their epsilon


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Silence transformers while it loads: one line or an error of ours reports it; only downloads keep their bar."""
    logging = require("transformers.utils.logging")
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if local and bar:
            logging.enable_progress_bar()


def _preprocessing(where: str, local: bool) -> Mapping[str, Any]:
    """The preprocessor's settings, with the defaults of its class; empty without a file."""
    processors = require("transformers").AutoImageProcessor
    try:
        with _quiet(local):
            found = processors.from_pretrained(where, local_files_only=local, trust_remote_code=False)
            settings: dict[str, Any] = found.to_dict()
    except Exception as error:  # of many kinds too
        if local and (Path(where) / PREPROCESSOR).exists():
            raise CheckpointError(f"{Path(where) / PREPROCESSOR} cannot be read: {first_line(error)}") from error
        return {}
    if settings.get("do_color_quantize"):
        raise ConfigError(f"'{where}' takes colours from a fixed set, through which no gradient passes")
    return settings


def _normalization(settings: Mapping[str, Any], where: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of images in [0,1] that are the same as the model's rescaling and normalisation of 0..255."""
    wanted = settings.get("do_normalize")
    if not settings or (wanted and not (settings.get("image_mean") and settings.get("image_std"))):
        advice = "give --mean and --std in [0,1] units (0 and 1: none)"
        raise ConfigError(f"'{where}' has no normalisation in a {PREPROCESSOR}: {advice}")
    numbers: dict[str, Any] = {key: settings.get(key) for key in ("image_mean", "image_std", "rescale_factor")}
    found = (numbers[key] if wanted else none for key, none in (("image_mean", 0.0), ("image_std", 1.0)))
    with suppress(TypeError, ValueError):  # they are no numbers
        means, stds = ([float(one) for one in (value if isinstance(value, list | tuple) else [value])] for value in found)
        scale = 255 * float(numbers["rescale_factor"] if settings.get("do_rescale") else 1)
        offset = 1.0 if settings.get("rescale_offset") else 0.0
        if settings.get("include_top"):  # of EfficientNet, whose processor divides by the deviation twice
            stds = [std * std for std in stds]
        if len(means) == len(stds) and min(scale, *stds) > 0:
            return [(mean + offset) / scale for mean in means], [std / scale for std in stds]
    raise ConfigError(f"the {PREPROCESSOR} of '{where}' has numbers that cannot be: {numbers}")


def _size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in which the model is given its images; None if its files ask for none."""
    size = settings.get("size") if settings.get("do_resize") else None
    if settings.get("do_center_crop"):
        size = settings.get("crop_size") or size
    if isinstance(size, Mapping):
        size = [size.get(side, size.get("shortest_edge")) for side in ("height", "width")]
    elif isinstance(size, int):
        size = [size, size]
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 and all(size) else None


def _order(names: Mapping[int, str], classes: Sequence[str]) -> list[int] | None:
    """Which logit is each of the data's classes, where the model has the same classes in another order."""
    both = [names[key] for key in sorted(names)], classes
    own, wanted = ([spelled(str(name)) for name in some] for some in both)
    if own == wanted or len(own) != len(wanted) or all(name.startswith("label") for name in own):  # no names
        return None
    if len(set(wanted)) == len(wanted) and sorted(own) == sorted(wanted):
        return [own.index(name) for name in wanted]
    say(f"warning: its classes are {', '.join(own[:10])}, the images' {', '.join(wanted[:10])}: they are taken in these orders")
    return None


def _runs(classifier: nn.Module, data: ImageSet) -> bool:
    classifier.eval()
    images = to_float(data.images[:1]).cpu()
    for channels in (3, 1):  # grey is seen to later
        with suppress(Exception), torch.no_grad():  # whatever a foreign network raises
            classifier(images[:, :channels])
            return True
    return False
