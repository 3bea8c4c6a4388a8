"""What processes send each other: activations and tokens over Gloo, control records over the store."""
