"""The contest of `benchmarks/train_step.py`: one model, one batch, one update, made in several frameworks.

The model is Qwen 3's (arXiv 2505.09388), for every framework here has it: RMS norms before each block and on queries
and keys, rotary positions, causal attention, SwiGLU, tied embedding. `contest.py` says what is equal on all sides and
counts its work, `worker.py` is the process of one contender, and each other file makes one contender with the means of
its framework. They import that framework alone, so each runs in an environment of its own.
"""
