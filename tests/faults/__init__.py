"""Faults injected into real trainings from outside, at drawn moments: ``python -m tests.faults --count 500``."""
