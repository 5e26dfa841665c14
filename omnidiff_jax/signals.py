"""Exit statuses of their own, and signals that end a command at any moment."""

# Those of sysexits.h: start again to go on / a hang, ended by the watchdog.
PREEMPTED = 75
HUNG = 70
