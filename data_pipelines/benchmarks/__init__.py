"""Public benchmarks, read from a user's own copies of their data."""
