"""What the grown network may cost: parameters, MACs, a table, or measured milliseconds.

Enters: a limit. Leaves: a budget that the analyser spends.
"""
