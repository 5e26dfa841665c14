"""What developers check: kills, conversion at full size, real media through full-size modules."""
