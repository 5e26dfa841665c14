"""Scenes: an embedded, deterministic, random-access world of coloured shapes that exercises every task."""
