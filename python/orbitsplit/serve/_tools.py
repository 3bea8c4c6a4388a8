"""Tools of a chat request: what a model may call, and whether it must."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
# Keywords of JSON schemas: those with any value, and those with a schema for each name.
_VALUES = frozenset({"const", "default", "enum", "examples"})
_OF_NAMES = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class Function(BaseModel):
    """A function with the JSON schema of its parameters. `strict` is ignored: schemas hold wherever they apply."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments, that of no arguments if none is given."""
        return _NO_PARAMETERS if self.parameters is None else self.parameters


class Tool(BaseModel):
    """A tool; all tools are functions."""

    model_config = _STRICT

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """Return the tool as chat templates take it."""
        function = {"name": self.function.name, "parameters": self.function.schema_of_parameters}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {"type": "function", "function": function}


class FunctionName(BaseModel):
    """The name of a function."""

    model_config = _STRICT

    name: str


class NamedTool(BaseModel):
    """The choice of one tool that must be called."""

    model_config = _STRICT

    type: Literal["function"] = "function"
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def schema_of_call(tools: tuple[Tool, ...]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of the tools: an object with `name` and `arguments`."""
    if len(tools) == 1:
        return _schema_of_one(tools[0], "#")
    return {"anyOf": [_schema_of_one(tool, f"#/anyOf/{number}") for number, tool in enumerate(tools)]}


def _schema_of_one(tool: Tool, place: str) -> dict[str, Any]:
    """Return the schema of a call of one tool, which is at `place` in that of the answer."""
    arguments = _moved(tool.function.schema_of_parameters, f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str, *, has_keywords: bool = True) -> Any:
    """Return a schema whose references into itself, from the root "#", hold where it is part of another."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {}
    for key, value in schema.items():
        if has_keywords and key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            moved[key] = place + value.removeprefix("#")
        elif has_keywords and key in _VALUES:
            moved[key] = value
        else:
            moved[key] = _moved(value, place, has_keywords=not (has_keywords and key in _OF_NAMES))
    return moved
