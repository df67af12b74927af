"""`growpipe run`: recipes, the loop over rounds, the run directory and its summary.

Enters: a recipe and a directory. Leaves: the directory with every stage, a summary, a picture and the
final network.
"""
