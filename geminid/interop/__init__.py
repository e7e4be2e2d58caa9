"""Interop: weights of other open models in and out.

In: safetensors in Hugging Face's layout and their config.json. Out: the same. One table a family says which of their
tensors is which parameter of ours. A tensor that no table names, one that is missing and one of another shape are
errors that name it. Imported by the command line.
"""
