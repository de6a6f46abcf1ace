"""Masks, learnt from few labelled patients."""
