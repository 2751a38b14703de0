"""What trains a run: the loop, checkpoints, several processes."""
