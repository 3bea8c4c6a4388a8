"""The process of a stage: it receives activations, runs its layers and sends the result."""
