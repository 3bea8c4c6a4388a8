"""Messages between processes: activations and tokens over Gloo, control records over the store."""
