"""The analyser: signed splits of every channel group of a torch module."""
