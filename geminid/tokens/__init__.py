"""Tokens: segments <-> ids and features.

In: documents. Out: streams (token ids, loss weights, pictures and log-mel features to place).
One id space: special | text pieces | image codes. Imported by batches, model, train, evaluate.
"""
