"""The baselines of a run: purifiers to compare ours with, built, read or trained."""

from pathlib import Path
from typing import Any

from torch import nn

from purifiers.console import say
from purifiers.device import repeatable
from purifiers.errors import ConfigError
from purifiers.purifier import Purifier
from purifiers.recipes.baseline_settings import BaselineSOAP, TrainedBaseline, Untrained, folder_of
from purifiers.registry import CONFIG_FILE, build_network, describe, load_network, resolve
from purifiers.runs import STATE_FILE, Run
from purifiers.seeds import seed_for
from purifiers.storage import load_state, locked, write_text

SETTINGS_FILE = "baseline.json"
"""In the folder of a trained baseline: its settings."""


@repeatable()
def prepare_baselines(run: Run, train: bool = True) -> None:
    """Build the recipe's baselines into ``run.baselines``.

    Args:
        run: with a classifier and a student.
        train: train those that are not trained yet; False leaves them out, with those that wrap them.

    Raises:
        OutOfTime, TrainingError, CheckpointError: see :func:`purifiers.training.loop.fit`.
        ConfigError: the classifier has no such layer, or images do not suit the baseline.
    """
    for title, config in run.recipe.baselines.items():
        network: nn.Module | None
        if isinstance(config, Untrained):
            network = _untrained(run, config)
        elif not isinstance(config, TrainedBaseline):
            network = build_network(config.network.network, config.network.arguments)
        elif train:
            data = run.images("train").limited(config.limit, seed_for(run.recipe.seed, "baselines", "limit"))
            with locked(run.folder):
                network = resolve(config.trainer, "trainer")(run, title, config, data)
            write_text(run.checkpoint(folder_of(title)) / SETTINGS_FILE, config.model_dump_json(indent=1))
        else:
            network = _trained(run, title, config)
        if network is None:
            say(f"{title:<16} is left out: not trained as the recipe says (--baselines all trains it)")
        else:
            run.baselines[title] = Purifier(network).placed(run.device)


def network_arguments(config: TrainedBaseline, classes: int) -> dict[str, Any]:
    """The arguments of the baseline's network; a classifier in it has as many ``classes`` as the data."""
    arguments = dict(config.network.arguments)
    if isinstance(config, BaselineSOAP):
        arguments["classifier"] = {**arguments["classifier"], "num_classes": classes}
    return arguments


def _trained(run: Run, title: str, config: TrainedBaseline) -> nn.Module | None:
    """The finished network of a baseline, if it was trained with these settings."""
    folder = run.checkpoint(folder_of(title))
    if not (folder / CONFIG_FILE).is_file() or not (folder / STATE_FILE).is_file():
        return None
    network, history = load_network(folder), load_state(folder / STATE_FILE)["history"]
    expected = build_network(config.network.network, network_arguments(config, len(run.images("test").classes)))
    if describe(network) != describe(expected) or _settings(config, folder) != config:
        return None
    run.histories[folder.name] = history
    return network


def _settings(config: TrainedBaseline, folder: Path) -> TrainedBaseline | None:
    """The settings that a baseline was trained with, or None; ``test_limit`` is of the evaluation and free."""
    try:
        settings = type(config).model_validate_json((folder / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        return None
    return settings.model_copy(update={"test_limit": config.test_limit})


def _untrained(run: Run, config: Untrained) -> nn.Module | None:
    if config.around is None:
        return build_network(config.network.network, config.network.arguments)
    inner = run.purifiers["student"] if config.around == "student" else run.baselines.get(config.around)
    if inner is None:
        return None
    described = describe(inner.network)
    if config.network.network == "soap":
        if described.pop("network") != "soap":
            raise ConfigError(f"baselines: a network 'soap' goes around a trained SOAP only; '{config.around}' is not one")
        other = build_network("soap", {**described, **config.network.arguments})
        try:
            other.load_state_dict(inner.network.state_dict())
        except RuntimeError as error:
            raise ConfigError(f"baselines: the weights of '{config.around}' do not fit these arguments: {error}") from error
        return other
    outer = build_network(config.network.network, {**config.network.arguments, "base": described})
    outer.get_submodule("base").load_state_dict(inner.network.state_dict())
    return outer
