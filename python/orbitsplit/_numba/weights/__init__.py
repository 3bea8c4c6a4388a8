"""Quantised weights in NumPy and Numba; the folders of `cpp/src/weights` are flat here."""
