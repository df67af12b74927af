"""The five stages of a round, one module each.

Enters: the results of the stage before. Leaves: a published folder and typed facts about it.
"""
