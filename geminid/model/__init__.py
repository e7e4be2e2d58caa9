"""Model: decoder, picture and audio encoders, image codec, CoCa heads.

In: packed batches (arrays). Out: hidden states, logits, features, codes. Flax NNX modules whose
`__call__` is pure. Imported by train, evaluate, serve.

Axis letters: B batch or rows, T positions of the queries, S positions of the keys, D model width,
H query heads, K key-value heads, Dh head width, F MLP width, V ids, L layers.
"""
