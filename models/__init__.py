"""Seed networks and the recipes that ship with growpipe."""
