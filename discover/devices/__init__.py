"""Devices: what suits them, programs over many of them, several processes."""
