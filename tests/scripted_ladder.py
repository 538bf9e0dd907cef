"""The text of a ladder of two scripted stages, for tests of the command line and of real processes."""

LADDER = """\
[[stages]]
name = "low"
engine = "scripted"
model = "a"
cost = 1.0
options = { reply = "from low" }

[[stages]]
name = "high"
engine = "scripted"
model = "b"
cost = 3.0
options = { reply = "from high" }
"""
