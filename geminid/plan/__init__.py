"""Planners: what a run needs before anyone pays for it.

In: a request (`geminid.plan.requests`: plain numbers, a recipe's name, a CSV of finished runs). Out: a mapping that
`geminid plan` prints, and a picture if asked for. `budget` answers how large, how many tokens and at what cost;
`topology` answers which TPU slice, how fast its network is, and what failed cubes do to it.
May import: `geminid.config`, `geminid.recipes`, numpy, scipy, matplotlib for pictures; no JAX. May be imported by:
cli and the tests. `requests` imports nothing heavy: the command line reads it to show its help.
"""
