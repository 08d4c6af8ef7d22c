"""Trust checks: can the robust accuracy of a defended model be believed, or did the attack fail?

A robust accuracy is an upper bound, which a broken attack makes worthless. The checks look for the signs of broken attacks.
Passing them proves nothing; failing one means that the number is not reliable.
"""
