"""Training programs of the tokenizers for Commons, as their configs name them."""
