"""Reading and writing files that may be hostile.

Enters: a path. Leaves: a model whose bytes, declared sizes and references were checked before
anything trusted them.
"""
