"""SDVI: the speech-driven visual interaction set, built from visual question answering and text-to-image pairs."""
