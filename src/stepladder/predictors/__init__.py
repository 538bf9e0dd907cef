"""Numbers → estimated quality of every stage, with doubt. Knows nothing of costs or policies."""
