"""What watches a run: its lock, numbers, time, log, bad steps, hangs, SIGTERM, traces."""
