"""Libraries that not everybody needs, and how to get them."""

import importlib
from types import ModuleType

from purifiers.errors import ConfigError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which comes with the optional part ``extra`` of this library.

    Raises:
        ConfigError: it is not installed; says how to.
    """
    library = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != library:
            raise  # it is there, and something else is missing
        raise ConfigError(f"this needs {library}, which is not installed: pip install 'purifiers[{extra}]'") from error
