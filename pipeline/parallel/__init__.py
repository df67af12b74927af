"""Several processes under ``torchrun``: one plan, one writer, the steps of one process.

Enters: what each process computed. Leaves: what all of them agree on.
"""
