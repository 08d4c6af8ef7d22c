"""Libraries that are installed only where they are wanted."""

from importlib import import_module
from types import ModuleType

from purifiers.errors import ConfigError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: its name.
        extra: the extra of this library that installs it.

    Raises:
        ConfigError: it cannot be imported; says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"this needs {module} ({error}): pip install 'purifiers[{extra}]'") from error
