"""What the parent logs as `orbitsplit.runtime`: nodes, links and numbers.

The text of an error is never logged, since it may quote a prompt; the caller gets it with the exception.

    DEBUG    requests, processes started
    INFO     a session is ready, hosts measured, used or left alone, times that drift, a migration, the pipeline was
             closed
    WARNING  losses, processes killed, recoveries with the nodes that joined, migrations that fail in their pause,
             messages that arrived corrupted
    ERROR    a request is given up, the pipeline has ended
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from orbitsplit._errors import TransportError
from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import listed
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.rebalance import Gain, Measured, MeasuredLink
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import Group

from .migration import Migration
from .recovery import Recovery

LOG = logging.getLogger("orbitsplit.runtime")


def submitted(groups: Iterable[Group]) -> None:
    """Log a request."""
    for group in groups:
        LOG.debug(
            "group %d: %d rows of %d tokens, up to %d new ones",
            group.id,
            group.rows,
            group.tokens,
            group.max_new_tokens,
        )


def ready(session: int, plan: Plan, seconds: float) -> None:
    """Log that a session takes work."""
    LOG.info("session %d is ready after %.1f s: %d stages on %s", session, seconds, len(plan.stages), _nodes(plan))


def chunks_unsupported(plan: Plan, ready: Sequence[Ready]) -> None:
    """Log that prompts run as a whole although the plan has chunks."""
    if plan.chunk_tokens is not None and not all(stage.runs_chunks for stage in ready):
        LOG.warning(
            "the model cannot run prompts in chunks of %d tokens as planned: they run as a whole", plan.chunk_tokens
        )


def lost(session: int, error: TransportError) -> None:
    """Log a loss."""
    LOG.warning("session %d is lost: %s", session, _fault(error))


def recovered(recovery: Recovery, session: int, requests: int) -> None:
    """Log that work resumes after one or more losses."""
    before = {stage.node for stage in recovery.before.stages}
    joined = [stage.node for stage in recovery.after.stages if stage.node not in before]
    LOG.warning(
        "recovered from %d losses in %.1f s, %.1f s of them loading: session %d on %s (joined: %s), %d requests resume",
        1 + len(recovery.further),
        recovery.seconds,
        recovery.loading_s,
        session,
        _nodes(recovery.after),
        ", ".join(joined) or "none",
        requests,
    )


def measured(node: str, slowdown: float | None, links: Mapping[tuple[str, str], MeasuredLink]) -> None:
    """Log what a host that has joined is like."""
    speed = "" if slowdown is None else f"{slowdown:.3g} times as long as on the profile's node, "
    rates = [f"to {b} {format_bytes(one.bytes_per_s)}/s" for (a, b), one in links.items() if a == node]
    LOG.info('node "%s" has joined and was measured: %s%s', node, speed, ", ".join(rates) or "no links")


def left_alone(node: str, reason: str) -> None:
    """Log why a host that has joined is not used."""
    LOG.info('node "%s" is left alone: %s', node, reason)


def rebalancing(joined: Iterable[str], drift: Measured, gain: Gain, plan: Plan) -> None:
    """Log why another plan is taken while nothing was lost."""
    causes = [*(f'node "{node}" has joined' for node in sorted(joined)), *drift.described()]
    LOG.info("going over to %s, as %s: %s", _nodes(plan), "; ".join(causes) or "a better plan is known", gain)


def drift_ignored(drift: Measured, reason: str) -> None:
    """Log that times drift from the prediction and the plan stays."""
    LOG.info("the plan stays although %s: %s", "; ".join(drift.described()), reason)


def not_rebalanced(reason: str) -> None:
    """Log that rebalancing failed this time."""
    LOG.warning("not rebalanced: %s", reason)


def migrated(migration: Migration) -> None:
    """Log that work goes on with another plan."""
    LOG.info(
        "migrated with a pause of %.3f s (%s) to %s, %d requests go on",
        migration.pause_s,
        migration.how,
        _nodes(migration.after),
        migration.requests,
    )


def not_migrated(plan: Plan, error: Exception) -> None:
    """Log that a migration failed after the old plan had stopped, which starts again."""
    LOG.warning("a migration failed in its pause, and %s go on: %s", _nodes(plan), _fault(error))


def restarted(group: int, tokens: int, failures: int) -> None:
    """Log that a group restarts after corrupted messages."""
    LOG.warning("group %d restarts with %d new tokens, corrupted messages in a row: %d", group, tokens, failures)


def conditions_unused(nodes: Iterable[str]) -> None:
    """Log the nodes that conditions of links name and the plan leaves out."""
    LOG.warning("conditions of links name nodes that the plan does not use: %s", listed(nodes))


def memory_exceeded(excess: str) -> None:
    """Log that stages used more memory than their nodes have."""
    LOG.warning("%s", excess)


def given_up(group: int, kind: str) -> None:
    """Log that a group is given up."""
    LOG.error("group %d is given up (%s)", group, kind)


def ended(error: BaseException | None) -> None:
    """Log that the pipeline has ended: closed (None), or because of an error."""
    if error is None:
        LOG.info("the pipeline is closed")
    else:
        LOG.error("the pipeline has ended: %s", _fault(error))


def _nodes(plan: Plan) -> str:
    return ", ".join(stage.node for stage in plan.stages)


def _fault(error: BaseException) -> str:
    if not isinstance(error, TransportError):
        return type(error).__name__
    if error.link is not None:
        return f'link from node "{error.link[0]}" to node "{error.link[1]}" ({error.kind})'
    if error.node is not None:
        return f'node "{error.node}" ({error.kind})'
    return error.kind if error.__cause__ is None else type(error.__cause__).__name__
