"""Statistics of every cut from one pass over the data: means, covariances, Fisher information, sampled rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orbitsplit._io.tensor_file import Arrays

from ._activation_hooks import ActivationHooks
from ._task import Batch, Task

# A row whose norm is this many times the median of its batch is an outlier (attention sinks: 10 to 1000 times). It
# would dominate every mean, and its codes are escapes anyway.
OUTLIER_RATIO = 8.0

# The fractional parts of its multiples are evenly spread, however many there are.
GOLDEN = 0.6180339887498949

# Rows kept unchanged, to choose steps and to count codes; 10 MB for a width of 640.
SAMPLE_ROWS = 4096
_SAMPLED_EACH = 5


@dataclass
class CutStatistics:
    """Sums over the inlier rows of one cut, and a sample of all its rows.

    `total` [H], `products` [H, H] (sum of x x') and `fisher` [H, H] (sum of g g', g the gradient of the task's
    surrogate, over `gradients` rows) are float64 and grow; `sample` [R, H] is float32. If no codec needs whole
    matrices, `products` and `fisher` are their diagonals [H].
    """

    count: int
    gradients: int
    outliers: int
    total: Tensor
    products: Tensor
    fisher: Tensor
    sample: Tensor

    @classmethod
    def empty(cls, width: int, *, is_whole: bool) -> CutStatistics:
        """Return statistics of no rows, with whole matrices or their diagonals."""
        zeros = torch.zeros((width, width) if is_whole else (width,), dtype=torch.float64)
        return cls(0, 0, 0, torch.zeros(width, dtype=torch.float64), zeros, zeros.clone(), torch.zeros(0, width))

    def add(self, rows: Tensor, gradients: Tensor | None) -> None:
        """Add the rows [R, H] of a batch, and their gradients."""
        norms = rows.norm(dim=1)
        inlier = norms <= OUTLIER_RATIO * norms.median()
        x = rows[inlier]
        self.count += len(x)
        self.outliers += int((~inlier).sum())
        self.total += x.sum(0, dtype=torch.float64)
        _add_squares(self.products, x)
        if gradients is not None:
            self.gradients += len(x)
            _add_squares(self.fisher, gradients[inlier])

    def keep(self, rows: Tensor, quota: int) -> None:
        """Add `quota` of the rows [R, H] of a batch to the sample.

        They are evenly spaced, from an offset that differs from call to call: first tokens are outliers in many models,
        and must not be over-represented in the sample.
        """
        quota = min(quota, len(rows))
        start = len(self.sample) * GOLDEN % 1
        chosen = ((torch.arange(quota) + start) * (len(rows) / max(1, quota))).long().clamp_max(len(rows) - 1)
        self.sample = torch.cat([self.sample, rows[chosen].float()])

    @property
    def mean(self) -> Tensor:
        """The mean row [H], float64."""
        return self.total / max(1, self.count)

    @property
    def covariance(self) -> Tensor:
        """The covariance [H, H], float64. Needs whole matrices."""
        return self.products / max(1, self.count) - torch.outer(self.mean, self.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each channel [H], float64."""
        return (_diagonal(self.products) / max(1, self.count) - self.mean**2).clamp_min(0)

    @property
    def sensitivity(self) -> Tensor:
        """The diagonal [H] of the Fisher information, float64."""
        return _diagonal(self.fisher) / max(1, self.gradients)

    def to_arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the numbers as named arrays; `from_arrays` reads them."""
        tensors = {name: getattr(self, name).numpy() for name in ("total", "products", "fisher", "sample")}
        return {
            **{f"{prefix}.{name}": array for name, array in tensors.items()},
            f"{prefix}.counts": np.array([self.count, self.gradients, self.outliers], np.int64),
        }

    @classmethod
    def from_arrays(cls, prefix: str, arrays: Arrays) -> CutStatistics:
        """Return the statistics that `to_arrays` named."""
        count, gradients, outliers = (int(value) for value in arrays[f"{prefix}.counts"])
        tensors = {
            name: torch.from_numpy(np.array(arrays[f"{prefix}.{name}"]))
            for name in ("total", "products", "fisher", "sample")
        }
        return cls(count, gradients, outliers, **tensors)


def _add_squares(sums: Tensor, x: Tensor) -> None:
    sums += (x.T @ x if sums.dim() == 2 else (x * x).sum(0)).double()


def _diagonal(sums: Tensor) -> Tensor:
    return sums.diagonal() if sums.dim() == 2 else sums


def collect(
    hooked: ActivationHooks,
    task: Task,
    batches: Sequence[Batch],
    cuts: Sequence[int],
    *,
    seed: int,
    done: dict[int, CutStatistics],
    first_batch: int = 0,
    before_batch: Callable[[], None] = lambda: None,
    after_batch: Callable[[int], None] = lambda _batch: None,
) -> None:
    """Add the batches from `first_batch` on to the statistics in `done`, one forward for each.

    Every fifth batch adds rows to the sample and nothing to the sums, so that steps and tables are fitted to other rows
    than the transform. Fitted to the rows of its transform, the codec of Gemma 3 270M (640 channels, 16,000 rows) takes
    0.15 bits more on others. All other batches take a backward, which costs as much as two forwards and the head:
    with gradients of 88 rows instead of 18, Gemma 3 270M loses 8 % less at 2.5 bits.

    `before_batch()` is called before a batch is added, `after_batch(i)` when batch i has been added to all statistics.
    The same seed gives the same numbers, however often the work was interrupted between batches.
    """
    sampled = [index for index in range(len(batches)) if _is_sampled(index, len(batches))]
    quota = -(-SAMPLE_ROWS // len(sampled))
    for index in range(first_batch, len(batches)):
        batch, is_summed = batches[index], index not in sampled or len(sampled) == len(batches)
        if is_summed:
            hidden = _with_gradients(hooked, task, batch, cuts, seed=seed * 1_000_003 + index)
        else:
            hidden = hooked.hidden_at(batch.inputs, cuts)
        before_batch()
        for cut, states in hidden.items():
            gradients = None if states.grad is None else batch.rows(states.grad).float()
            rows = batch.rows(states.detach()).float()
            if index in sampled:
                done[cut].keep(rows, quota)
            if is_summed:
                done[cut].add(rows, gradients)
        after_batch(index)


def _is_sampled(index: int, batches: int) -> bool:
    return batches < _SAMPLED_EACH or index % _SAMPLED_EACH == _SAMPLED_EACH - 1


def _with_gradients(
    hooked: ActivationHooks, task: Task, batch: Batch, cuts: Sequence[int], *, seed: int
) -> Mapping[int, Tensor]:
    """Return the hidden state at each cut, with the gradient of the task's surrogate."""
    hidden: dict[int, Tensor] = {}

    def watch(cut: int) -> Callable[[Tensor], Tensor]:
        def at(states: Tensor) -> Tensor:
            # Weights are frozen, so the graph begins at the first cut.
            states = states if states.requires_grad else states.detach().requires_grad_()
            states.retain_grad()
            hidden[cut] = states
            return states

        return at

    with torch.enable_grad():
        result = hooked.run(batch.inputs, {cut: watch(cut) for cut in cuts})
        scalar = task.surrogate(task.outputs(result, batch), torch.Generator().manual_seed(seed))
        scalar.backward()  # type: ignore[no-untyped-call]
    return hidden
