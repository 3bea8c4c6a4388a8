"""Scenario files, devices with the source of every number, and checks of what geometry allows."""
