"""Compression of language-model weights in JAX, seen as a choice of coordinates."""
