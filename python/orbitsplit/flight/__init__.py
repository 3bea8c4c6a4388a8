"""Flights: plans in time of a constellation, run on the runtime by a clock that may be faster than real time.

Example:
    >>> import orbitsplit as osp
    >>> requests = osp.flight.requests_over("cubesat", "my-model", 20, hours=15)           # doctest: +SKIP
    >>> flight = osp.flight.fly("cubesat", "my-model", requests, speed=60, slower=100)              # doctest: +SKIP
    >>> flight.handovers, flight.largest_deviation                                                  # doctest: +SKIP
"""

from __future__ import annotations

from orbitsplit._plans.flight_log import FlightHandover, FlightLog, FlightPass, FlightToken, FlightTransmission

from ._flight import Flight, FlightRequest, FlownRequest
from ._fly import fly
from ._requests import requests_over

__all__ = [
    "Flight",
    "FlightHandover",
    "FlightLog",
    "FlightPass",
    "FlightRequest",
    "FlightToken",
    "FlightTransmission",
    "FlownRequest",
    "fly",
    "requests_over",
]
