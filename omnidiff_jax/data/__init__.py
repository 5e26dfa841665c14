"""Data sets to packed batches: encoding, storage, sources, mixture, packing, streams, loader."""
