"""Token ids in, log-probs out."""
