"""Request (and the attempts made so far) → numbers. Knows nothing of stages, prices or models."""
