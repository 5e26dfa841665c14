"""Media and messages to ids, and back: the tokenizers of a model as one object."""
