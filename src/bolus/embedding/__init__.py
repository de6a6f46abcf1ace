"""An encoder and a cohort become embeddings, computed once for every image."""
