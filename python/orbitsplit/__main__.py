"""`python -m orbitsplit` and the `orbitsplit` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; say which extra to install where it is missing."""
    try:
        from orbitsplit._cli.main import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f'error: the command line needs {error.name}: pip install "orbitsplit[cli]"')
    run()


if __name__ == "__main__":
    main()
