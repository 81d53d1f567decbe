"""The report: one HTML file of figures, examples and warnings, made of what a run left."""
