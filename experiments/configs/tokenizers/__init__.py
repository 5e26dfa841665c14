"""Configs that train the tokenizers and the speech encoder."""
