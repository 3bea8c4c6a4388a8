"""Sections of a report about constellations: the map, contacts, findings, and plans in time. Needs sgp4."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from .chain import chain_of_plan
from .page import Page, Section
from .passes import contacts_figure, in_view_figure, timed_plan_figure
from .stages import chain_figure
from .style import duration
from .world import world_figure

if TYPE_CHECKING:
    from orbitsplit.leo import Scenario, TimedPlan

_MOST_FINDINGS = 20


def add_scenario(page: Page, scenario: Scenario | None, hours: float) -> None:
    """Add the map, the contacts over some hours, and the origin of every number."""
    if scenario is None:
        return
    fleet = scenario.constellation
    page.title = page.title or scenario.title
    page.subtitle = page.subtitle or f"{fleet.name}; epoch {fleet.epoch:%Y-%m-%d %H:%M} UTC"
    contacts = fleet.contacts(fleet.epoch, fleet.epoch + timedelta(hours=hours)) if fleet.stations else ()
    page.cards += [
        ("satellites", f"{len(fleet):,}"),
        ("links between satellites", f"{len(fleet.links(fleet.epoch)[0]):,}"),
        ("stations", str(len(fleet.stations))),
        (f"contacts in {hours:g} h", f"{len(contacts):,}"),
    ]
    text = (
        "Satellites, their links and what stations see at the instant of the slider. Dashed: within it a station sees "
        "satellites."
    )
    page.sections.append(Section(title="Map", text=text, figures=[world_figure(fleet, scenario.chain)]))
    if contacts:
        figures = [
            contacts_figure(contacts, scenario.chain, fleet.epoch, hours),
            in_view_figure(contacts, fleet.epoch, hours),
        ]
        total_s = sum(contact.duration_s for contact in contacts)
        text = f"{len(contacts):,} contacts, {duration(total_s / len(contacts))} on average."
        page.sections.append(Section(title="Contacts", text=text, figures=figures))
    findings = scenario.lint(hours=hours)[:_MOST_FINDINGS]
    page.sections.append(
        Section(
            title="Numbers",
            text="; ".join(str(finding) for finding in findings)
            or "No findings: links of the chain are always available, no satellites collide, stations have contacts.",
            head=("number", "value", "origin", "source"),
            rows=[
                (name, f"{number.value:,.10g}", number.origin, number.source)
                for name, number in scenario.numbers.items()
            ],
        )
    )


def add_timed_plan(page: Page, plan: TimedPlan | None, *, has_plan: bool) -> None:
    """Add a plan in time; the chain that it runs too, unless the page has one."""
    if plan is None:
        return
    page.title = page.title or f"Plan in time: {plan.strategy}"
    page.subtitle = page.subtitle or plan.reason
    page.cards += [
        ("from request to completion", duration(plan.duration_s)),
        ("waits before it starts", duration(plan.waits_s)),
        ("handovers", str(len(plan.handovers))),
    ]
    figures = [timed_plan_figure(plan)]
    if not has_plan:
        figures.append(chain_figure(chain_of_plan(plan.plan)))
    rows = [
        (
            other.strategy,
            "-" if other.completion is None else duration((other.completion - plan.requested).total_seconds()),
            other.reason or "",
        )
        for other in plan.alternatives
    ]
    page.sections.append(
        Section(
            title="Plan in time",
            text=plan.reason,
            figures=figures,
            head=("other strategy", "request to completion", "why not"),
            rows=rows,
        )
    )
