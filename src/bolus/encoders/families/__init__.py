"""Backbones by name: which there are, where each keeps its parts, and where weights come from."""
