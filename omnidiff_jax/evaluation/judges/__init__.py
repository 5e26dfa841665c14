"""Judges of pictures and speech, by name, from folders of one's own; none of them is a model that is examined."""
