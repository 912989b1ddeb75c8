"""Which keys a query sees, at which distance, and how sharply: what the attention function of a model does."""
