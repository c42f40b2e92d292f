"""Evaluation: training many seeds, and comparing objectives."""
