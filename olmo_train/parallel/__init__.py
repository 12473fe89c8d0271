"""Process groups and meshes, FSDP2 wrapping, recompute, compile: parallelism applied from outside the model."""
