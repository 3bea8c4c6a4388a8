"""Quantised weights: matrices in 8 and 4 bits, and products with them."""
