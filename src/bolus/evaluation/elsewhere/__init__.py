"""Learned on one cohort, judged on another."""
