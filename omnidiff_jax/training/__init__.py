"""Training: programs (what is trained), state, step, checkpoints and the loop that runs any program."""
