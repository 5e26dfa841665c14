"""PyTorch <-> Flax: each module's names and layouts as data (`rules.py` holds the machine)."""
