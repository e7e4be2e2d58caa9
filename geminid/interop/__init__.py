"""Interop: weights of other open models in, ours and theirs out.

In: safetensors in Hugging Face's layout with their config.json, GGUF files, known models by name. Out: a folder in
Hugging Face's layout. One table a family says which of their tensors is which parameter of ours. A tensor that no table
names, one that is missing and one of another shape are errors that name it; so is a field of config.json that changes
the sums and is not ours. Pickles are never opened. Imported by the command line.
"""
