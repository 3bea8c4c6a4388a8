"""The first stage: it starts groups, owns their tokens, and sends the next step when a token returns."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orbitsplit.runtime._drafts import Drafts, Guessing, PromptLookup
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.limits import Limits
from orbitsplit.runtime._messages.packs import FIRST_PACK, OpenPacks, Part

from .prefixes import Prefixes
from .protocol import Forward, Kind, Message, Outlet, Report, error_of
from .running import Flight, Running, kept_steps, next_tokens
from .waiting import WaitingLine, cached_tokens

# How often in a row the messages of a group are sent again after corruption, without a token in between: so often for
# each message that may be sent again, of which a prompt in chunks has several. Working links corrupt rarely.
MAX_CORRUPTIONS = 8
# As many tokens in a forward take little longer than one (docs/internals/runtime.md), so guesses fill up to so many.
_GUESSED_TOKENS = 8


class FirstStage:
    """The first stage. Groups beyond the limits wait in order of arrival; `drafts` makes what guesses their tokens.

    `advance` runs the prompts, a chunk at a time and in order of arrival, and steps of groups that share forwards, so
    that neither holds up the other. Such groups are spread evenly over as many packs as may be in flight: each stage
    has work then, and a pack that has become small gets those that are ready next.

    Steps of groups that do not share forwards go out as tokens return. Those of calls that are recorded, which end with
    all their tokens at once, let prompts of such calls pass: the last prompt decides when all ends.
    """

    def __init__(
        self,
        stage: Forward,
        outlet: Outlet,
        report: Report,
        limits: Limits,
        drafts: Callable[[Group, Tensor], Drafts] = lambda _group, tokens: PromptLookup(tokens.tolist()),
    ) -> None:
        self._stage = stage
        self._outlet = outlet
        self._report = report
        self.limits = limits
        self._drafts = drafts
        self._waiting: WaitingLine[Running] = WaitingLine()
        self._running: dict[int, Running] = {}
        self._ready: deque[Running] = deque()  # those that share forwards, and have returned
        self._behind_prompts: deque[Running] = deque()  # recorded ones that have returned
        self._flights = 0
        self._open_packs = OpenPacks(outlet.forget)
        self._pack_numbers = itertools.count(FIRST_PACK)
        self._prefixes = Prefixes(self._forget, stage.has_kept)
        self._is_draining = self._has_drained = False

    @property
    def has_work(self) -> bool:
        """Whether `advance` has work: steps that may be sent, or prompts of which not every chunk was sent."""
        return self._has_steps() or self._next_prompt() is not None or self._can_start() or self._has_held_steps()

    def drain(self) -> None:
        """Start no more groups, and once all prompts have returned send no more steps.

        When the last token that is under way has returned, that is reported: each group then has the keys and values of
        all its tokens but the last, on every stage. From then on requests are ignored.
        """
        self._is_draining = True

    def begin(self, group: Group, x: Any) -> None:
        """Queue a group: `x` are its tokens [b, S], those as input_ids with images, or the inputs of its forward."""
        images: dict[str, Tensor] = {}
        if group.generates and not isinstance(x, Tensor):
            images = {name: value for name, value in x.items() if name != "input_ids"}
            x = x["input_ids"]
        group = group.with_ids(x) if group.needs_ids else group
        rows_running = torch.ones(group.rows, dtype=torch.bool)
        rows_running[list(group.ended_rows)] = False
        guessing = Guessing(self._drafts(group, x[0]), group.draft_tokens) if group.draft_tokens else None
        self._waiting.append(Running(group, x, rows_running, group.first_step - 1, guessing, images))

    def advance(self) -> None:
        """Send a message of steps that are ready, and the next chunk of the prompt that has waited longest.

        Behind that, a step that let prompts pass, if no other recorded one is next.
        """
        if self._has_steps():
            self._send_ready()
        running = self._next_prompt()
        if running is None and self._can_start():
            running = self._start(self._waiting.take())
        if running is not None:
            self._send(running)
        if self._has_held_steps():
            self._send(self._behind_prompts.popleft())
        # Last: what was to be sent may have failed, and with nothing under way no event leads here again.
        if self._is_draining and not self._has_drained and self._holds_back():
            self._has_drained = not any(running.is_awaited for running in self._running.values())
            if self._has_drained:
                self._report.drained(list(self._running))

    def cancel(self, group: int) -> None:
        """End a group as soon as nothing of it is awaited; a group that has ended is ignored."""
        if self._has_drained:
            return
        if self._waiting.remove(group):
            self._stage.drop(group)  # caches that it has before it begins
            self._outlet.notify(Kind.END, group)
            self._report.end(group)
        elif group in self._running:
            running = self._running[group]
            running.is_cancelled = True
            if running.step < 0 or not running.is_awaited:
                self._finish(running)

    def returned(self, message: Message) -> None:
        """Process a message of the last stage: tokens, CORRUPTED or FAILED.

        What is repeated may return twice: tokens that are there already, and messages of a group that has ended, are
        ignored.
        """
        if message.kind is Kind.PACK:
            assert message.x is not None, "tokens arrive whole, or as CORRUPTED"
            returned = torch.split(message.x, [part.tokens for part in message.parts])
            for part, tokens in zip(message.parts, returned, strict=True):
                self._take(part.group, part.step, tokens)
        elif message.kind is Kind.CORRUPTED and message.group >= FIRST_PACK:
            self._repeat_pack(message.group)
        elif message.kind is Kind.STEP:
            assert message.x is not None, "tokens arrive whole, or as CORRUPTED"
            self._take(message.group, message.step, message.x)
        elif message.group in self._running:
            running = self._running[message.group]
            if message.kind is Kind.CORRUPTED and self._open_packs.has_latest(message.group):
                return  # it is of an earlier step, which is known
            if running.is_cancelled:
                self._finish(running)
            elif message.kind is Kind.FAILED:
                self._fail(running, "request", message.reason)
            else:
                self._repeat(running)

    def _take(self, group: int, step: int, tokens: Tensor) -> None:
        running = self._running.get(group)
        if running is None or step != len(running.got):
            return
        if running.is_cancelled or not running.group.generates or not self._accept(running, tokens):
            self._finish(running)
        elif running.group.is_packable:
            self._land(running)
            self._ready.append(running)
        elif self._goes_behind_prompts(running):
            self._behind_prompts.append(running)
        elif not self._holds_back():
            self._send(running)

    def _start(self, running: Running) -> Running:
        """Put a group in flight, with what is kept of another that began like it."""
        group = running.group
        has_own = group.replayed or group.is_moved
        found = self._prefixes.find(running.x[0]) if group.shares_prefix and not has_own else None
        if found is not None:
            self._prefixes.use(found[0])
            running.group = group = replace(group, prefix_of=found[0], known_tokens=found[1])
            running.step = group.first_step - 1
        self._running[group.id] = running
        self._make_room()
        return running

    def _make_room(self) -> None:
        """Forget what is kept beyond the limits."""
        most = self.limits.prefix_tokens
        if self.limits.cache_tokens is not None:
            used = sum(cached_tokens(running.group) for running in self._running.values())
            most = max(0, min(most, self.limits.cache_tokens - used))
        self._prefixes.shrink(most)

    def _forget(self, group: int) -> None:
        self._stage.forget(group)
        self._outlet.notify(Kind.FORGET, group)

    def _release_prefix(self, running: Running) -> None:
        if running.group.prefix_of is not None and not running.got:
            self._prefixes.release(running.group.prefix_of)

    def _has_steps(self) -> bool:
        return bool(self._ready) and self._flights < self.limits.most_packs and not self._holds_back()

    def _holds_back(self) -> bool:
        """Whether steps wait for the end of the session. Until all prompts have returned the others go on."""
        return self._is_draining and all(running.has_returned for running in self._running.values())

    def _goes_behind_prompts(self, running: Running) -> bool:
        prompt = self._next_prompt()
        if prompt is None and self._can_start():
            prompt = self._waiting.first()
        return prompt is not None and prompt.group.is_recorded and running.group.is_recorded

    def _has_held_steps(self) -> bool:
        if not self._behind_prompts or self._holds_back():
            return False
        return not self._goes_behind_prompts(self._behind_prompts[0])

    def _can_start(self) -> bool:
        return not self._is_draining and self._waiting.can_start(self._running.values(), self.limits)

    def _next_prompt(self) -> Running | None:
        return next((running for running in self._running.values() if running.step < 0), None)

    def _send_ready(self) -> None:
        """Send the next steps of groups that share a forward, in the order in which their tokens returned."""
        sharing = sum(running.group.is_packable and running.step >= 0 for running in self._running.values())
        share = min(-(-sharing // self.limits.most_packs), self.limits.pack_tokens, len(self._ready))
        chosen = [self._ready.popleft() for _ in range(share)]
        flight = Flight(len(chosen))
        self._flights += 1
        for running in chosen:
            running.flight = flight
        if len(chosen) == 1:
            self._send(chosen[0])
        else:
            self._send_pack(chosen)

    def _send(self, running: Running) -> None:
        """Run the next step of a group, and send what the stage makes of it."""
        step = running.step + 1 if running.step < 0 else len(running.got)
        reason = error_of(self._stage, functools.partial(self._run_step, running, step))
        if reason is not None:
            self._fail(running, "request", reason)

    def _run_step(self, running: Running, step: int) -> None:
        group = running.group
        if step == group.first_step:
            self._stage.begin(group)
        x: Any
        if step > 0:
            x = next_tokens(running, most_guesses=group.draft_tokens)
        elif group.generates:
            positions = group.positions(step)
            ids = running.x[:, positions.start : positions.stop]
            x = {**running.images, "input_ids": ids} if running.images else ids
        else:
            x = running.x
        output = self._stage.forward(group.id, step, x)
        running.step = step
        if output is None:
            return
        if step == group.first_step:
            self._outlet.begin(group, output)
        else:
            self._open_packs.leave(group.id)
            self._outlet.send(group.id, step, output)

    def _send_pack(self, chosen: Sequence[Running]) -> None:
        """Run the next step of several groups in one forward, and send what the stage makes of it."""
        most_guesses = min(_GUESSED_TOKENS, self.limits.pack_tokens) // len(chosen) - 1
        inputs = self._inputs(chosen, most_guesses)
        chosen = [running for running in chosen if running.group.id in inputs]
        if not chosen:
            return
        parts = [Part(running.group.id, len(running.got), inputs[running.group.id].shape[1]) for running in chosen]
        number = next(self._pack_numbers)
        for running, part in zip(chosen, parts, strict=True):
            running.step = part.step
        self._open_packs.add(number, [part.group for part in parts])

        def work() -> None:
            result = self._stage.forward_pack(parts, torch.cat(list(inputs.values()), dim=1))
            for group, reason in result.errors.items():
                self._fail(self._running[group], "request", reason)
            if result.parts:
                self._outlet.send_pack(number, result.parts, result.x)

        reason = error_of(self._stage, work)
        for running in chosen if reason is not None else ():
            if running.group.id in self._running:
                self._fail(running, "request", reason or "")

    def _inputs(self, chosen: Sequence[Running], most_guesses: int) -> dict[int, Tensor]:
        """Return the next tokens [1, n] by group; a group whose guesses raise an error ends alone."""
        inputs: dict[int, Tensor] = {}
        for running in chosen:

            def work(running: Running = running) -> None:
                inputs[running.group.id] = next_tokens(running, most_guesses=most_guesses)

            reason = error_of(self._stage, work)
            if reason is not None:
                self._fail(running, "request", reason)
        return inputs

    def _accept(self, running: Running, returned: Tensor) -> bool:
        """Add the tokens that returned, of guesses those that are right; return whether to continue."""
        tokens, details = returned, None
        if returned.dim() > 1:
            tokens = returned[:, 0]
            if running.group.details is not None:  # else it shared a message with groups that have some
                details = returned[:, 1:]
        if running.guessing is None:
            return self._add_tokens(running, tokens, details)
        return all(
            self._add_tokens(running, one, None if details is None else details[place : place + 1])
            for place, one in enumerate(running.guessing.finish(tokens.tolist()))
        )

    def _add_tokens(self, running: Running, tokens: Tensor, details: Tensor | None) -> bool:
        """Add one token to each row, the pad token to ended rows as transformers does; return whether to continue."""
        group = running.group
        tokens = torch.where(running.rows_running, tokens, group.pad_token_id)
        self._release_prefix(running)
        running.got.append(tokens)
        running.corruptions = 0
        running.rows_running &= ~torch.isin(tokens, torch.tensor(group.eos_token_ids, dtype=torch.int64))
        self._report.tokens(group.id, tokens, details)
        return bool(running.rows_running.any()) and len(running.got) < group.max_new_tokens

    def _repeat(self, running: Running) -> None:
        steps = kept_steps(running.group.first_step, running.step)
        if self._may_repeat(running, len(steps)):
            for step in steps:
                self._outlet.repeat(running.group.id, step)

    def _repeat_pack(self, number: int) -> None:
        if number not in self._open_packs:
            return
        members = [self._running[group] for group in self._open_packs.groups(number)]
        if all(self._may_repeat(running, 1) for running in members):
            self._outlet.repeat(number, 0)
        else:
            reason = "a message that it shares with others arrived corrupted too often"
            for running in members:
                if running.group.id in self._running:
                    self._fail(running, "corruption", reason)

    def _may_repeat(self, running: Running, messages: int) -> bool:
        """Count a corruption among so many messages in flight; return whether they are sent again, else fail."""
        running.corruptions += 1
        if running.corruptions > MAX_CORRUPTIONS * messages:
            self._fail(running, "corruption", f"{running.corruptions} of its messages in a row arrived corrupted")
            return False
        self._report.retry(running.group.id, len(running.got), running.corruptions)
        return True

    def _finish(self, running: Running) -> None:
        group = running.group
        self._report.end(group.id)
        if not group.shares_prefix or not self.limits.prefix_tokens or not running.got or running.is_cancelled:
            self._drop(running)
            return
        # Of all tokens but the last, which has not run.
        text = torch.cat([running.x[0], *running.got[:-1]])
        self._leave(running)
        self._stage.keep(group.id, len(text))
        self._outlet.notify(Kind.KEEP, group.id, step=len(text))
        self._prefixes.add(group.id, text)
        self._make_room()

    def _fail(self, running: Running, kind: str, reason: str) -> None:
        self._report.fail(running.group.id, kind, reason)
        self._drop(running)

    def _land(self, running: Running) -> None:
        """Note that tokens of a group have returned, or never will."""
        if running.flight is not None:
            running.flight.awaited -= 1
            self._flights -= running.flight.awaited == 0
            running.flight = None

    def _drop(self, running: Running) -> None:
        self._leave(running)
        self._stage.drop(running.group.id)
        self._outlet.notify(Kind.END, running.group.id)

    def _leave(self, running: Running) -> None:
        """Take a group out of flight."""
        del self._running[running.group.id]
        for line in (self._ready, self._behind_prompts):
            if running in line:
                line.remove(running)
        self._land(running)
        self._release_prefix(running)
        self._open_packs.leave(running.group.id)
