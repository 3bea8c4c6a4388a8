"""Benches (pytest-benchmark) and studies (long experiments with a table as result)."""
