"""``stepladder bench decode``: ways to decode against each other, in one process, on the same weights."""
