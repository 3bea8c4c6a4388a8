"""The planner in Numba, file by file as in `cpp/src/planner`."""
