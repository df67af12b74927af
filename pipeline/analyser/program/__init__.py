"""The exported program, run piece by piece: what each channel group displaces and where it is mixed.

Enters: an ExportedProgram and channel groups. Leaves: activations, derivatives and the tensors that a
product needs.
"""
