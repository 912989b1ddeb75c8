"""The attention function of a model: which keys a query sees, at which distance, and how sharply."""
