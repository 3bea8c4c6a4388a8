"""Element sets that tests write to files, and what `leo.load` answers."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from orbitsplit import leo

from .paths import DATA

CASES = DATA / "cases"
MESSAGE: dict[str, Any] = json.loads((CASES / "omm_nine_digit_number.json").read_text())[0] | {"NORAD_CAT_ID": 25544}
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
TLE = (DATA / "leo" / "iss.tle").read_text()
NAME, FIRST, SECOND = TLE.splitlines()
XML = (DATA / "leo" / "iss.xml").read_text()
KVN = "".join(f"{key} = {value}\n" for key, value in MESSAGE.items())
CSV = ",".join(MESSAGE) + "\n" + ",".join(map(str, MESSAGE.values())) + "\n"


def load_message(folder: Path, change: dict[str, Any]) -> leo.Constellation:
    (folder / "a.json").write_text(json.dumps([{**MESSAGE, **change}]))
    return leo.load(folder / "a.json")


def refusal(folder: Path, name: str, content: str | bytes) -> str:
    """Return the message with which a file is refused, without the path, of which it must begin with."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        leo.load(path)
    return str(caught.value).replace(str(path), "")
