"""The reference of the command line, made from the commands themselves."""

from __future__ import annotations

from typing import Any

import typer

from orbitsplit._cli.main import app

_INTRODUCTION = """# Command line

The extra `cli` installs the command `orbitsplit`; `python -m orbitsplit` is the same. Every command has `--help` with
an example, and every command that reports something has `--json`, which prints one JSON object to standard output
instead of text. Messages and progress go to standard error.

| exit status | meaning |
| --- | --- |
| 0 | the command succeeded |
| 1 | the work failed: no feasible plan, a lost node, a plan above its accuracy limit |
| 2 | the input is wrong: an argument, a file, a key, a value, a corrupt frame, a missing extra |
"""


def page() -> str:
    """Return the page: every command with its usage, arguments and options."""
    root = typer.main.get_command(app)
    context = typer.Context(root)
    sections = [_section(f"orbitsplit {name}", command, context) for name, command in _commands(root, context)]
    return "\n".join([_INTRODUCTION, *sections])


def _commands(group: Any, context: typer.Context, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the commands by name, those of groups after the name of the group."""
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            found += _commands(command, context, f"{prefix}{name} ")
        else:
            found.append((f"{prefix}{name}", command))
    return found


def _section(name: str, command: Any, context: typer.Context) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    tables = [
        _table(kind, [p.get_help_record(context) for p in command.get_params(context) if p.param_type_name == kind])
        for kind in ("argument", "option")
    ]
    return f"## {name}\n\n{command.help}\n\n```sh\n{usage}\n```\n\n{''.join(tables)}"


def _table(kind: str, records: list[tuple[str, str] | None]) -> str:
    rows = [f"| `{_cell(flags)}` | {_cell(text)} |\n" for flags, text in filter(None, records)]
    return "".join([f"| {kind} | |\n| --- | --- |\n", *rows, "\n"]) if rows else ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|").strip()
