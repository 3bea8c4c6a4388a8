"""The caller's process: it starts the stages, sends them work, and recovers from losses."""
