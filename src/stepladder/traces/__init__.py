"""Writing and reading what happened. Never calls an engine."""
