"""Encoders of volumes: backbones whose maps have three axes, and two-dimensional ones that are given a third."""
