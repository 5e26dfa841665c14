"""Training programs of the tokenizers, one file each."""
