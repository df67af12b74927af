"""What is to grow: split plans as data, and the one function that grows one tensor.

Enters: channel groups and decisions. Leaves: a `SplitPlan` on disk or in memory, and grown tensors.
"""
