"""The commands of `discover`: a module for each, with its arguments and its function."""
