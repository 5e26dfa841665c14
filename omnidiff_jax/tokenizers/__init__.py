"""Raw media and text to codes, and back."""
