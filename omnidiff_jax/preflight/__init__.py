"""Will it fit, and how fast could it be: programs compiled ahead of time for devices that need not be there."""
