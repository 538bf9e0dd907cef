"""What stands before the engines: who can take a call now, and where conversations were answered."""
