"""Random kills of a real service under load, and whether every job still ended right, once.

`python -m tests.faults.chaos --minutes 60 --seed 0` prints a tally; it ends with status 1 if
anything was lost, doubled or left over.
"""
