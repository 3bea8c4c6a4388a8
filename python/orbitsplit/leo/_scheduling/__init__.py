"""Plans in time: when and where to compute, and in which contacts files are transferred."""
