"""Quantizers and their algebra, in float32: shared by every method."""
