"""How good is it? Sampling, judging, comparing, reporting."""
