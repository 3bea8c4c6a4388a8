"""A decoder's layer in NumPy and Numba; the counterpart of `cpp/src/decoder`."""
