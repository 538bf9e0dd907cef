"""The only door to models. Knows nothing of estimates, costs or policies."""
