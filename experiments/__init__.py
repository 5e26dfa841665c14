"""The commands: `omnidiff COMMAND` runs the module `experiments.COMMAND`; `configs/` holds the values."""
