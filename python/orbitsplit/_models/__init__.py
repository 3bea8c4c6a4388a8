"""Models of transformers: where they come from, how they are built, and what a stage of one is."""
