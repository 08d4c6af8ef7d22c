"""The baselines of a run: other purifiers, built, read or trained, to compare its own with."""

from torch import nn

from purifiers.baselines import SOAP
from purifiers.baselines.classical import Wrapper
from purifiers.console import say
from purifiers.device import repeatable
from purifiers.errors import ConfigError
from purifiers.purifier import Purifier
from purifiers.recipes.baseline_settings import TrainedBaseline, Untrained, folder_of
from purifiers.registry import CONFIG_FILE, build_network, describe, load_network, resolve
from purifiers.runs.layout import SETTINGS_FILE, STATE_FILE, Run
from purifiers.storage import load_state, locked, write_text


def own_classifier(title: str, purifier: Purifier) -> tuple[nn.Module, str] | None:
    """SOAP's own classifier, which was trained with its task, and a name for it; None for other purifiers."""
    network = purifier.network
    while isinstance(network, Wrapper):
        network = network.base
    if not isinstance(network, SOAP):
        return None
    return network.classifier, f"resnet{network.classifier.config['depth']} of {title}"


@repeatable()
def prepare_baselines(run: Run, train: bool = True) -> None:
    """Build, read or train the recipe's baselines into ``run.baselines``; without ``train``, those that are not trained yet are
    left out, with those that wrap them.

    Raises:
        OutOfTime, TrainingError, CheckpointError: see :func:`purifiers.training.loop.fit`.
        ConfigError: the classifier has no such layer, or images do not suit the baseline.
    """
    network: nn.Module | None
    for title, config in run.recipe.baselines.items():
        if isinstance(config, Untrained):
            network = _untrained(run, config)
        elif not isinstance(config, TrainedBaseline):
            network = config.build(len(run.images("test").classes))
        elif train:
            data = run.drawn(config.limit)
            with locked(run.folder):
                network = resolve(config.trainer, "trainer")(run, title, config, data)
            write_text(run.checkpoint(folder_of(title)) / SETTINGS_FILE, config.model_dump_json(indent=1))
        else:
            network = _trained(run, title, config)
        if network is None:
            say(f"{title:<16} is left out: not trained as the recipe says (--baselines all trains it)")
        else:
            run.baselines[title] = Purifier(network).placed(run.device)


def _trained(run: Run, title: str, config: TrainedBaseline) -> nn.Module | None:
    """The finished network of a baseline, if it was trained with these settings; ``test_limit`` is of the evaluation."""
    folder = run.checkpoint(folder_of(title))
    if not (folder / CONFIG_FILE).is_file() or not (folder / STATE_FILE).is_file():
        return None
    network, history = load_network(folder), load_state(folder / STATE_FILE)["history"]
    try:
        settings = type(config).model_validate_json((folder / SETTINGS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    same = settings.model_copy(update={"test_limit": config.test_limit}) == config
    if not same or describe(network) != describe(config.build(len(run.images("test").classes))):
        return None
    run.histories[folder.name] = history
    return network


def _untrained(run: Run, config: Untrained) -> nn.Module | None:
    if config.around is None:
        return config.network.build()
    inner = run.purifiers["student"] if config.around == "student" else run.baselines.get(config.around)
    if inner is None:
        return None
    described = describe(inner.network)
    if config.network.network != "soap":
        outer = config.network.build(base=described)
        outer.get_submodule("base").load_state_dict(inner.network.state_dict())
        return outer
    if described.pop("network") != "soap":
        raise ConfigError(f"baselines: a network 'soap' goes around a trained SOAP only; '{config.around}' is not one")
    other = build_network("soap", {**described, **config.network.arguments})
    try:
        other.load_state_dict(inner.network.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"baselines: the weights of '{config.around}' do not fit these arguments: {error}") from error
    return other
