"""Whether an encoder serves every group of patients."""
