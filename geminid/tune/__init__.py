"""Tune: weights that are there learn something more. Data and a loss; imported by the command line."""
