"""Parallel: how arrays lie on many devices; one file of it, `sharding.py`, names how they are cut.

In: arrays and their logical names, and the mesh that is set around the call. Out: the same arrays, placed. Without a
mesh nothing here leaves a trace in a program. Imported by model and train.
"""
