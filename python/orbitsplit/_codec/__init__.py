"""Codecs as users call them: arrays and tensors in, frames out."""
