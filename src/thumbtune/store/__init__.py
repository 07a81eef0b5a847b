"""The store: completions as they were served, votes as they were pressed, on SQLite or PostgreSQL."""
