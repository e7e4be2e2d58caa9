"""Serve: a model that answers. The engine knows ids only; a chat is the engine with a tokenizer.

In: a decoder, prompts. Out: ids or text, as they come. Never imports train.
"""
