"""Slow links and slow nodes, emulated on one machine."""
