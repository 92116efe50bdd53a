"""Users' sequences, items and their contents, and training batches; knows nothing of models."""
