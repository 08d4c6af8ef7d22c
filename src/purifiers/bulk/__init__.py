"""Cleaning image files in bulk."""
