"""Files to arrays; no table is known."""
