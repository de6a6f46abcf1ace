"""Encoders and the features they return."""
