"""The splitting matrix S as an operator, and the metric in which displacements are measured.

Enters: a bound program and samples. Leaves: products S·v for all channels at once.
"""
