"""Users' sequences, items with their content, and training batches. Does not depend on models."""
