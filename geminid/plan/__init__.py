"""Plan: what a run will need and meet, before the machines exist.

In: published figures and a user's wishes. Out: one mapping a question, for a table or JSON, and a picture.
Imports `runtime`, whose controller the simulator drives; imported by `cli`.
"""
