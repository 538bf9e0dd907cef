"""What a stage costs now, and what an attempt is billed. Knows nothing of quality."""
