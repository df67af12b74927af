"""Training of one network for one stage: seeded, resumable, on one or several processes.

Enters: a module, an optimizer and loaders. Leaves: trained weights and the figures of every epoch.
"""
