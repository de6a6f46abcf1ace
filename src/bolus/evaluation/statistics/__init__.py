"""Metrics, intervals, verdicts and results."""
