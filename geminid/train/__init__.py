"""Train: losses, optimiser, the pure step, the loop of one slice, checkpoints. Never imports runtime."""
