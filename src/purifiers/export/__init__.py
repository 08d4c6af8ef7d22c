"""A purifier as a file for other programs."""
