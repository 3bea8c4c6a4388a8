"""Tools of a chat request: what a model may call, and whether it must."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
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
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": tool.function.schema_of_parameters},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}
