"""Logical axis names, the tables that map them to mesh axes, and the mesh itself."""
