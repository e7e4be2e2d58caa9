"""Batches: documents -> packed batches of a fixed shape, resumable (Grain). Imported by train, evaluate."""
