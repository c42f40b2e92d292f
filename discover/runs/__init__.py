"""Runs: the loop around a search, its directory, its record, its memory."""
