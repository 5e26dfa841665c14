"""Recorded runs of the released code, repeated by this one and compared number for number (`omnidiff parity`)."""
