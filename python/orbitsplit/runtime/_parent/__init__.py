"""The caller's process: it starts the stages, feeds them, and replaces them after a loss."""
