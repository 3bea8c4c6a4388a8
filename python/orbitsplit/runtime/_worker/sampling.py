"""New tokens from logits: greedy and sampled, with the results of transformers' generate."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from orbitsplit.runtime._messages.groups import Sampling


class Sampler:
    """Samples the tokens of one group.

    transformers samples for a whole batch at once, from torch's generator. A part of the batch gets the same tokens if
    noise is drawn for the whole batch and that of other rows is discarded: exponential noise for every row and token,
    and the token with the largest ratio of probability to noise (as `torch.multinomial` does for one sample).
    """

    def __init__(self, sampling: Sampling, rows: int) -> None:
        self._rows = slice(sampling.first_row, sampling.first_row + rows)
        self._batch = sampling.rows
        self._skipped = sampling.drawn
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._states: dict[int, Tensor] = {}  # of the generator, after so many draws
        self._warpers = LogitsProcessorList()
        if sampling.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(top_k=sampling.top_k))
        if sampling.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(top_p=sampling.top_p))

    def pick(self, logits: Tensor) -> Tensor:
        """Return one token [b] for each row of logits [b, V]."""
        scores = self._warpers(None, logits.to(torch.float32, copy=True))
        for _ in range(self._skipped):
            self._noise(logits.shape[1])
        self._skipped = 0
        tokens: Tensor = (scores.softmax(dim=-1) / self._noise(logits.shape[1])[self._rows]).argmax(dim=-1)
        return tokens

    def pick_run(self, logits: Tensor, first: int) -> Tensor:
        """Return one token [n] for each of the logits [n, V], which are of one row one after the other.

        `first` is the number of tokens drawn before. Those of an earlier call behind it turned out to be wrong guesses:
        their draws are taken back.
        """
        self._states = {drawn: state for drawn, state in self._states.items() if drawn >= first}
        if first in self._states:
            self._generator.set_state(self._states[first])
        tokens = []
        for number, row in enumerate(torch.split(logits, 1)):
            tokens.append(self.pick(row))
            self._states[first + number + 1] = self._generator.get_state()
        return torch.cat(tokens)

    def _noise(self, vocabulary: int) -> Tensor:
        return torch.empty(self._batch, vocabulary).exponential_(generator=self._generator)


def greedy_run(logits: Tensor, first: int) -> Tensor:
    """Return the most likely token [n] for each of the logits [n, V]."""
    return greedy(logits)


def greedy(logits: Tensor) -> Tensor:
    """Return the most likely token [b] of each row of logits [b, V], the first of several."""
    if logits.dtype is torch.float32:  # of a few long rows numpy's takes a twentieth of the time of torch's
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    tokens: Tensor = logits.argmax(dim=-1)
    return tokens
