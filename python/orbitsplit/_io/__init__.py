"""Files, units and validation that every package shares. Knows nothing of models, planning or codecs."""
