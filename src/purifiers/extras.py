"""Libraries that not everybody needs, and how to get them."""

import importlib
from types import ModuleType

from purifiers.errors import ConfigError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which comes with the optional part ``extra`` of this library.

    Raises:
        ConfigError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # it is there, and something else is missing
        raise ConfigError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'purifiers[{extra}]'"
        ) from error
