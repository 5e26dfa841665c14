"""Masked diffusion: corruption, which hidden state predicts which token, and the loss."""
