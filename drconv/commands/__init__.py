"""What can be typed: ``drconv NAME`` of the installed package; in a checkout a file at the top or in ``scripts/``."""
