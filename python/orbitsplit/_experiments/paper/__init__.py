"""The experiments of arXiv 2604.04654 on our cost model, and the settings in which splitting does not pay.

published    the paper's figures, its models and images, codecs as levels, and what is not known
setup        one setting, and the planning problem that it makes
strategies   ground-only, one satellite, heuristic baselines, the best plan
charts       what an experiment returns
experiments  the paper's experiments
break_even   where "do not split" is the answer
headlines    the paper's figures and ours
results      all results, as data
figures      pictures (matplotlib)
report       the report in Markdown
run          runs all experiments and writes the files
"""

from __future__ import annotations

from .results import PaperBench
from .run import bench_paper

__all__ = ["PaperBench", "bench_paper"]
