"""Both ends of every splitting matrix's spectrum.

Enters: the operator and the metric. Leaves: extreme eigenpairs of S v = λ Σ v with their error bounds.
"""
