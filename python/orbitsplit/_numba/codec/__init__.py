"""The codecs in Numba, file by file as in `cpp/src/codec`."""
