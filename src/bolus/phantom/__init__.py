"""Synthetic cohorts whose truth is known: pictures of organs, and volumes of heads."""
