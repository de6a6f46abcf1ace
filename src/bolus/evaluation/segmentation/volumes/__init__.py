"""Masks of volumes: read on the grid of their volume, learnt in windows, drawn by windows that slide."""
