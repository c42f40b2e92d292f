"""Agents: networks, rollouts, learning, and the settings that suit an environment."""
