"""Prompts, sample questions, the embedded organism and published results: data only."""
