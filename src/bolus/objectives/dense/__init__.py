"""Losses of pixels: contrast of grids, and reconstruction."""
