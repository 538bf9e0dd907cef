"""Outcomes → fitted predictors → artifacts. Never imported by serving."""
