"""Measured speed, with what it is measured against beside it."""
