"""BIDS, the Brain Imaging Data Structure: names, tables, sidecars and masks by its own rules."""
