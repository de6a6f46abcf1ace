"""Judging an encoder, ours or any other, on patients it has not seen."""
