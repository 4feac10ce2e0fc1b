"""Training, evaluation, streaming and checkpoints."""
