"""Tests, with the judges and tiny models that they and the benches share."""
