"""What heads do, measured over a checkpoint: a fixed probe, its history and its frames."""
