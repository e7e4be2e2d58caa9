"""Runtime: many slices that fail, one run that does not notice.

In: a recipe's number of logical shards and a `Policy`; what slices report. Out: commands to slices, the committed
step, a goodput ledger. The controller here is pure: Ray actors carry its commands out in a real run, `plan`'s
simulator under simulated time. Imports `train` and below; imported by `cli` and `plan`, never by `train`.
"""
