"""The child process that runs models, so that a bad one cannot take the check with it.

Enters: a request with a model's path. Leaves: a typed answer, or how the child ended.
"""
