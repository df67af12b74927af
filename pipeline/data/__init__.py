"""Data sets: loaders of public formats as they are distributed."""
