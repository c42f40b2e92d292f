"""Searches for objectives: what a recipe holds, and the outer loops."""
