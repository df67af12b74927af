"""The forms in which a report can be written, one file each."""
