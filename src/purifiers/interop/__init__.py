"""Purifiers in the hands of other libraries."""
