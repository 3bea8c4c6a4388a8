"""The codecs in Numba; each file names its counterparts in `cpp/src/codec`, whose folders are flat here."""
