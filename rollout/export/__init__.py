"""Exports: what a run holds, in the words of a named trainer. One file a format; formats.py lists them."""
