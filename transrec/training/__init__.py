"""The training loop for pretraining and adaptation, evaluation, checkpoints and run folders."""
