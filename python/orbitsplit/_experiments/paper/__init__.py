"""The experiments of arXiv 2604.04654 on our cost model, and where splitting does not pay.

_numbers      what the paper says, its models and images, and codecs as levels
_setup        one setting, and the planning problem it makes
_ways         how to do the job: ground-only, one satellite, splits by rule, the best plan
_charts       what an experiment returns
_experiments  the paper's experiments
_break_even   where "do not split" is the answer
_headlines    the table of ours beside the paper's
_draw         pictures (matplotlib)
_markdown     the report
_bench        runs everything and writes the files
"""

from __future__ import annotations

from .results import PaperBench
from .run import bench_paper

__all__ = ["PaperBench", "bench_paper"]
