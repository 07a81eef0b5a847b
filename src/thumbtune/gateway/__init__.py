"""The gateway: an OpenAI-compatible service that keeps every completion and never loses a vote."""
