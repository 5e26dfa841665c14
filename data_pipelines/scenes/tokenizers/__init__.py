"""What the small tokenizers learn from Scenes, and the runs that train them."""
