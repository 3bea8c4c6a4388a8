"""The results of all experiments, and their JSON document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orbitsplit._io.json_document import document_of

from .charts import Chart, Map
from .headlines import Agreement, Headline, Verdict
from .published import UNKNOWN

FORMAT, VERSION = "orbitsplit-bench-paper", 1


@dataclass(frozen=True)
class PaperBench:
    """All results; `setting` describes the setting, `files` were written, `seconds` is the time it took."""

    model: str
    setting: str
    headlines: tuple[Headline, ...]
    verdicts: tuple[Verdict, ...]
    agreements: tuple[Agreement, ...]
    charts: tuple[Chart | Map, ...]
    files: tuple[Path, ...] = ()
    seconds: float = 0.0

    def chart(self, name: str) -> Chart | Map:
        """Return the chart with this name.

        Raises:
            ValueError: There is none.
        """
        for chart in self.charts:
            if chart.name == name:
                return chart
        raise ValueError(f"no chart {name!r}; there are: {', '.join(chart.name for chart in self.charts)}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data without the files and the time: the same numbers give the same data."""
        return document_of(
            FORMAT,
            VERSION,
            {
                "model": self.model,
                "setting": self.setting,
                "headlines": [asdict(headline) for headline in self.headlines],
                "verdicts": [{**asdict(verdict), "loses": verdict.loses} for verdict in self.verdicts],
                "agreements": [asdict(agreement) for agreement in self.agreements],
                "charts": {chart.name: chart.to_dict() for chart in self.charts},
                "unknown": list(UNKNOWN),
            },
        )
