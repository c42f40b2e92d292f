"""Games of MinAtar with gymnax's rules, in programs that are cheaper to compile and to step."""
