"""New tokens from logits: greedy and sampled, with the results of transformers' generate."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from orbitsplit._models.logits_processors import run_processors, unpack_processor
from orbitsplit.runtime._messages.groups import Details, Group, Sampling
from orbitsplit.runtime._messages.token_details import pack_logprobs, pack_vocabulary

# As many places of a prompt have log-probabilities made at once: in float32 they take as much memory as the logits.
_PROMPT_PLACES = 256


class Picker(Protocol):
    """Makes the tokens of one group of logits. The `step` is the number of new tokens before."""

    def pick(self, logits: Tensor, step: int) -> Tensor:
        """Return one token [b] for each row of logits [b, V]; with details their words [b, 1 + w]."""

    def pick_run(self, logits: Tensor, step: int) -> Tensor:
        """Return one token [n] for each of the logits [n, V], which are of one row one after the other.

        Tokens of an earlier call from `step` on turned out to be wrong guesses. Each of these follows the one before:
        where a guess is another, none of those behind it is used.
        """


def picker_of(group: Group) -> Picker:
    """Return what makes the tokens of a group."""
    if not group.processors and group.sampling is None and group.details is None:
        return Greedy()
    return Scoring(group)


class Greedy:
    """Takes the likeliest token of each row."""

    def pick(self, logits: Tensor, step: int) -> Tensor:
        """Return one token [b] for each row."""
        return greedy(logits)

    def pick_run(self, logits: Tensor, step: int) -> Tensor:
        """Return one token [n] for each place of a row."""
        return greedy(logits)


class Scoring:
    """Makes tokens as transformers does: scores by its logits processors, draws from its generator.

    Ended rows go on with the pad token, as in transformers, where the tokens so far are needed.
    """

    def __init__(self, group: Group) -> None:
        self._processors = [unpack_processor(data) for data in group.processors]
        self._noise = None if group.sampling is None else Noise(group.sampling, group.rows)
        self._text = Text(group) if group.needs_ids else None
        self._details = group.details
        self._prompt: list[Tensor] = []

    def pick(self, logits: Tensor, step: int) -> Tensor:
        """Return one token [b] for each row of logits [b, V]; with details their words [b, 1 + w]."""
        scores = logits.to(torch.float32, copy=bool(self._processors))  # a processor may change them in place
        if self._processors:
            scores = run_processors(self._processors, self._ids(scores, step), scores)
        tokens = greedy(scores) if self._noise is None else self._noise.draw(scores)
        if self._text is not None:
            self._text.write(step, tokens)
        return tokens if self._details is None else self._with_details(self._details, tokens, logits, scores)

    def pick_run(self, logits: Tensor, step: int) -> Tensor:
        """Return one token [n] for each of the logits [n, V], which are of one row one after the other."""
        if self._noise is not None:
            self._noise.rewind(step)
        tokens = []
        for following, row in enumerate(torch.split(logits, 1), start=step + 1):
            tokens.append(self.pick(row, following - 1))
            if self._noise is not None:
                self._noise.mark(following)
        return torch.cat(tokens)

    def read_prompt(self, logits: Tensor, start: int) -> None:
        """Take the logits [b, n, V] at the positions of the prompts from `start` on."""
        assert self._text is not None, "groups with log-probabilities of prompts need the ids"
        assert self._details is not None, "as above"
        known = self._text.before(0)
        count = min(logits.shape[1], known.shape[1] - start - 1)  # the last position's is of a new token
        following = known[:, start + 1 : start + 1 + count]
        top = self._details.prompt_logprobs or 0
        for places in torch.split(torch.arange(count), _PROMPT_PLACES):
            rows = [pack_logprobs(own[places], row[places], top) for own, row in zip(logits, following, strict=True)]
            self._prompt.append(torch.stack(rows))

    def _ids(self, scores: Tensor, step: int) -> Tensor:
        if self._text is not None:
            return self._text.before(step)
        return torch.zeros(len(scores), 0, dtype=torch.int64)  # no processor of the group reads them

    def _with_details(self, details: Details, tokens: Tensor, logits: Tensor, scores: Tensor) -> Tensor:
        parts = [tokens[:, None]]
        if details.logprobs is not None:
            parts.append(pack_logprobs(logits, tokens, details.logprobs))
        if details.has_logits:
            parts.append(pack_vocabulary(logits))
        if details.has_scores:
            parts.append(pack_vocabulary(scores))
        parts += [part.flatten(1) for part in self._prompt]
        self._prompt.clear()
        return torch.cat(parts, dim=1)


class Text:
    """All tokens of a group: those of its prompts, padding included, and the new ones."""

    def __init__(self, group: Group) -> None:
        self._prompt_tokens = group.tokens
        self._ids = group.input_ids()
        self._eos = torch.tensor(group.eos_token_ids, dtype=torch.int64)
        self._pad = group.pad_token_id
        # A single row ends its group, and what a wrong guess made of it must not end it.
        self._running: Tensor | None = None
        if group.rows > 1:
            self._running = torch.ones(group.rows, dtype=torch.bool)
            self._running[list(group.ended_rows)] = False

    def before(self, step: int) -> Tensor:
        """Return the tokens [b, S + step] before those of a step."""
        return self._ids[:, : self._prompt_tokens + step]

    def write(self, step: int, tokens: Tensor) -> None:
        """Set the new tokens [b] of a step; ended rows have the pad token."""
        place = self._prompt_tokens + step
        if place >= self._ids.shape[1]:  # it grows with the text: a request may allow far more than memory holds
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)], dim=1)
        if self._running is not None:
            tokens = torch.where(self._running, tokens, self._pad)
            self._running &= ~torch.isin(tokens, self._eos)
        self._ids[:, place] = tokens


class Noise:
    """The draws of one group.

    transformers samples for a whole batch at once, from torch's generator. A part of the batch gets the same tokens if
    noise is drawn for the whole batch and that of other rows is discarded: exponential noise for every row and token,
    and the token with the largest ratio of probability to noise (as `torch.multinomial` does for one sample).
    """

    def __init__(self, sampling: Sampling, rows: int) -> None:
        self._rows = slice(sampling.first_row, sampling.first_row + rows)
        self._batch = sampling.rows
        self._skipped = sampling.drawn
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._states: dict[int, Tensor] = {}  # of the generator, before the draw of a step

    def draw(self, scores: Tensor) -> Tensor:
        """Return one token [b] for each row of scores [b, V]."""
        vocabulary = scores.shape[1]
        for _ in range(self._skipped):
            self._exponential(vocabulary)
        self._skipped = 0
        tokens: Tensor = (scores.softmax(dim=-1) / self._exponential(vocabulary)[self._rows]).argmax(dim=-1)
        return tokens

    def mark(self, step: int) -> None:
        """Note that the next draw is that of a step, to which `rewind` may return."""
        self._states[step] = self._generator.get_state()

    def rewind(self, step: int) -> None:
        """Take back the draws from a step on; there is no return to steps before it."""
        self._states = {known: state for known, state in self._states.items() if known >= step}
        if step in self._states:
            self._generator.set_state(self._states[step])

    def _exponential(self, vocabulary: int) -> Tensor:
        return torch.empty(self._batch, vocabulary).exponential_(generator=self._generator)


def greedy(logits: Tensor) -> Tensor:
    """Return the most likely token [b] of each row of logits [b, V], the first of several."""
    if logits.dtype is torch.float32:  # of a few long rows numpy's takes a twentieth of the time of torch's
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    tokens: Tensor = logits.argmax(dim=-1)
    return tokens
