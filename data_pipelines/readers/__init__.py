"""Corpora as they lie on disks: layouts with an index, text rules, and a table of what is known."""
