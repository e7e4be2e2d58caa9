"""Parallel: for splitting a model over devices; the only room that may name PartitionSpec. Empty so far."""
