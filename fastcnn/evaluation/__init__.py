"""Evaluation: counting the answers of models and files on labelled pictures."""
