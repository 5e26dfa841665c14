"""From requests and conversations to answers in their media: the room behind `omnidiff_jax.load`."""
