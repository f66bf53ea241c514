"""Checkpoints that restore on any number of ranks, and run no code from files."""
