"""What every axis of every tensor is made of.

Enters: an ONNX graph. Leaves: the solved axes of its tensors, and a barrier wherever channels cannot split.
`dims` is the algebra, `axis` the solver, `rules` what each operator states, `inference` the walk over
the graph.
"""
