"""Files, memory, progress, versions, standard error: what any program needs."""
