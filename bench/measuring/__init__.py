"""Proving rows against the reference and timing them in turns."""
