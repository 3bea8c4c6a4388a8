"""Quantised weights: matrices in 8, 5 and 4 bits, and products with them."""
