"""Makers of thumbs with a known truth."""
