"""From log-probs to a run folder: one trainer for every loss."""
