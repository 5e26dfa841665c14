"""Speakers by name, and what every clip of theirs must pass."""
