"""Names of models: directories, GGUF files and hub ids, told apart without importing torch."""

from __future__ import annotations

from pathlib import Path


def find_model(path_or_id: str | Path) -> Path | str:
    """Return the path of a model directory or of a `.gguf` file; a hub id is returned as it is.

    A name that is not a path on this machine is a hub id if it has the form of one: `name` or `owner/name`.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The file or the directory is not a model.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a model directory: it has no config.json")
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{path} is not a model: expected a directory with config.json or a .gguf file")
        return path
    is_path = isinstance(path_or_id, Path) or path_or_id.startswith(("/", ".", "~")) or path_or_id.count("/") > 1
    if is_path or path.suffix == ".gguf":
        raise FileNotFoundError(f"no model at {path_or_id}: the path does not exist")
    return str(path_or_id)
