"""Flax linen modules; each file holds its modules and their frozen config."""
