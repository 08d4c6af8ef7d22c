"""The purifier as a service over HTTP."""
