"""Measurements against other libraries, made side by side. Not part of the installed package."""
