"""What each layer of a model costs: bytes, floating-point operations, seconds."""
