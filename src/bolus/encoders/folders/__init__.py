"""Encoders on disk."""
