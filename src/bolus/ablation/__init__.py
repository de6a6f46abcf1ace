"""Ablation: recipes that differ in one thing, trained for the same number of encoder passes and judged together."""
