"""Serving models to programs that are not ours: what is pure of it, without a server, an engine or a clock."""
