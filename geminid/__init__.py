"""Geminid: trains and measures natively multimodal models.

One decoder reads text, pictures, sound and video in any order and writes text and pictures.
`config` and `recipes` say what a run is, `cli` runs it; the rooms between them are described in
`docs/architecture.md`. Importing this package imports nothing else.
"""

__version__ = "0.1.0"
