"""Volumes: voxels with their places in the body, read, fitted, cached in parts and cut into windows."""
