"""Parallel: how arrays lie on many devices; `sharding.py` is the only file that may name PartitionSpec.

In: arrays and their logical names, and the mesh that is set around the call. Out: the same arrays, placed. Without a
mesh nothing here leaves a trace in a program. Imported by model and train.
"""
