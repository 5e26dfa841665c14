"""Audio and image files in and out (checked before they are decoded), resampling and acoustic features."""
