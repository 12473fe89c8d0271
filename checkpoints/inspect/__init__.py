"""Look into checkpoints: show one, compare two, and measure what a training run did from step to step."""
