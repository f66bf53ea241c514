"""Sharding: the sharder, what it refuses, and what TorchRec's planner should know."""
