"""Runs of many GPUs, simulated: coordinators and ledger are the real ones, workers and time are not."""
