"""Whether a training is well: findings, probes while it runs, gradients that disagree."""
