"""The mathematics: pure functions of log-probs, free of models, configs and ranks."""
