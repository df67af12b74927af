"""The checks themselves, one file per area. Importing a file enters its checks into the registry."""
