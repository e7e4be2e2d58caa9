"""Planners: what a run needs and meets before anyone pays for it.

In: a request (`geminid.plan.requests`: plain numbers, a recipe's name, a CSV of finished runs; `geminid.plan.rates` for
goodput). Out: a mapping that `geminid plan` prints, and a picture if asked for. `budget` answers how large, how many
tokens and at what cost; `ladder` trains small decoders, fits the law to them and tests it on a larger one; `topology`
answers which TPU slice, how fast its network is, and what failed cubes do to it; `compile` has the TPU compiler, in a
process of its own (`ahead`), compile the training step and plays the schedule on a model of the chips; `goodput` drives
the controller of `geminid.runtime` through months of simulated faults.
May import: `geminid.config`, `geminid.recipes`, `geminid.runtime`, `geminid.tokens.ids`, numpy, scipy, matplotlib for
pictures. `ladder` and `ahead` alone also import `geminid.train`, and JAX only in `rungs` and `ahead`, when there is
something to train or to compile: the others start without it. May be imported by: cli and the tests. `requests` imports
nothing heavy: the command line reads it to show its help.
"""
