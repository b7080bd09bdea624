"""The record of a run, and the tables made from records."""
