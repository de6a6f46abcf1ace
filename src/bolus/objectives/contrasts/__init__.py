"""Samples and views that belong together: contrast by relation, and variance, invariance, covariance."""
