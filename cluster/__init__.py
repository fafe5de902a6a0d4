"""Where a run runs: local services and jobs. Imports neither torch nor agmm, so that a laptop can submit."""
