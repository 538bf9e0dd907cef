"""Grading answers, replaying traces, and the tasks that the embedded ladder knows."""
