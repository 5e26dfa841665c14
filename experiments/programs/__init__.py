"""What `omnidiff train` can train: the value of `config.program` and the builder behind it.

A builder takes the config and the workdir and returns the arguments of `training.loop.train`.
"""
