"""Weights and optimizer state from one plan to another."""
