"""A web page to try a purifier on."""
