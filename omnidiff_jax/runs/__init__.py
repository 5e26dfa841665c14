"""Runs of the whole model: their config as one value, opened for training, restored for answering."""
