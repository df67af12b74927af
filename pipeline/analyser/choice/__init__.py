"""Which channels split, how, and how far.

Enters: eigenpairs, a cost model and a budget. Leaves: a `SplitPlan` with its ε.
"""
