"""A stage's process: it receives activations, runs its layers and sends the result on."""
