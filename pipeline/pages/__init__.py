"""Self-contained HTML pages. The story of a run, or a difference of models, enters; one HTML text leaves."""
