"""Chat layout and the registry of tasks: prompt, answer canvas, decoding defaults, metric."""
