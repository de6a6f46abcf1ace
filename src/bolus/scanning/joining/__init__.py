"""Columns of a table beside the images, joined to their rows."""
