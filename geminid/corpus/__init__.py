"""Sources to data set: public packages in, pictures, recordings, animations and names out.

In: a `geminid.config.DataConfig` and the user's cache directory. Out: a built data set on disk (ArrayRecord files,
an index and a manifest of packages with licences), read through `geminid.corpus.store.Dataset`.
May import: `geminid.config`. May be imported by: train, evaluate, tune, serve, cli and the tests.
"""
