"""Orbits, stations and links: where satellites are, what they see, and how fast they can send."""
