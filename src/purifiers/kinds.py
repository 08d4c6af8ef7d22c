"""Settings: groups of a recipe's keys, and those whose class is chosen by their key ``kind``, a name in a registry."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from purifiers.errors import ConfigError, nearest
from purifiers.registry import Registry


class Group(BaseModel):
    """Base of all groups of a recipe's keys: read-only, no unknown keys, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        unknown = [key for key in content if key not in cls.model_fields] if isinstance(content, Mapping) else []
        if unknown:
            raise ValueError("; ".join(f"there is no key '{key}'{nearest(str(key), cls.model_fields)}" for key in unknown))
        return content


class Kind(Group):
    """Base of settings whose class is chosen by ``kind``, which comes first when they are written."""

    registry: ClassVar[Registry[Any]]

    @property
    def kind(self) -> str:
        """The name that a recipe chooses this class by."""
        return self.registry.name_of(type(self))

    @model_validator(mode="before")
    @classmethod
    def _without_kind(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("kind") == cls.registry.name_of(cls):
            return {key: value for key, value in content.items() if key != "kind"}
        return content

    @model_serializer(mode="wrap")
    def _kind_first(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": self.kind, **default(self)}

    @classmethod
    def parse(cls, content: Any) -> "Kind":
        """An instance of the class that ``content`` names, a mapping under ``kind`` or a string; an instance as it is.

        Raises:
            ValueError: no ``kind``, an unknown one, one of another sort, or faults of the other keys.
        """
        if isinstance(content, cls):
            return content
        if isinstance(content, str):
            content = {"kind": content}
        if not isinstance(content, Mapping) or not isinstance(content.get("kind"), str):
            raise ValueError(f"this needs a kind: {', '.join(sorted(cls.registry))}, or module:Name")
        try:
            chosen = cls.registry[content["kind"]]
        except ConfigError as error:
            raise ValueError(f"kind: {error}") from error
        if not (isinstance(chosen, type) and issubclass(chosen, cls)):
            raise ValueError(f"kind: '{content['kind']}' is not a subclass of purifiers' {cls.__name__}")
        if odd := [key for key in content if not isinstance(key, str)]:  # an attack's constructor takes keywords
            raise ValueError(f"keys are texts; got {odd[0]!r}")
        try:
            return chosen.model_validate({**content, "kind": cls.registry.name_of(chosen)})
        except ValidationError as error:
            # An attack's constructor raises ConfigError; its cause has the keys.
            causes = [fault["ctx"]["error"].__cause__ for fault in error.errors() if "error" in fault.get("ctx", {})]
            raise next((cause for cause in causes if isinstance(cause, ValidationError)), error) from None


def faults(error: ValidationError, group: str | None = None) -> list[str]:
    """The faults of settings, such as a recipe's or those of one ``group``: a line each, with the dotted key and the value."""
    lines = []
    for fault in error.errors():
        if fault["type"] == "default_factory_not_called":  # a consequence of another fault
            continue
        key = ".".join(map(str, (*(() if group is None else (group,)), *fault["loc"]))) or "recipe"
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
            message = "should be a group of values: {key: value, ...}"  # pydantic names our class
        elif fault["type"] == "tuple_type":
            message = "should be a list: [first, second, ...]"
        elif fault["type"] == "string_pattern_mismatch":
            message = "should be a plain name, such as one for a folder"
        own = fault["type"] == "value_error" or not isinstance(fault["input"], str | float | int)
        lines.append(f"{key}: {message}" + ("" if own else f"; got {fault['input']!r}"))
    return lines
