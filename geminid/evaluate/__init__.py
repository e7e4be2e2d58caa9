"""Evaluate: tasks, metrics, baselines, the report page. Imported by the command line."""
