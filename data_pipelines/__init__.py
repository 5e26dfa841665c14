"""Data pipelines: building and generating the data sets that omnidiff_jax trains on."""
