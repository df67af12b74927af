"""What a network costs as a function of its widths.

Enters: the solved axes, or a table that somebody measured. Leaves: parameters, MACs or any other cost.
"""
