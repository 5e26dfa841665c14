"""How runs of several processes are started: SLURM, Kubernetes JobSet, and several processes on one machine."""
