"""Parallel: the mesh and the logical-axis rules: the only room that names PartitionSpec."""
