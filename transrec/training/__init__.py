"""One loop for pretraining and adapting, evaluation, checkpoints and run folders."""
