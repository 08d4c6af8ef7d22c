"""Optional libraries: each comes with one of the package's extras, and is imported where it is used."""

from importlib import import_module
from types import ModuleType

from purifiers.errors import ConfigError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, dotted, which comes with the package's ``extra``.

    Raises:
        ConfigError: it is not installed; the message says how to.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:  # it is there, and something of its own is not: that is another story
            raise
        how = f"pip install 'purifiers[{extra}]', or '.[{extra}]' in a clone"
        raise ConfigError(f"this needs {package}, which is not installed: {how}") from error
