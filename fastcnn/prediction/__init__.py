"""Prediction: pictures in, classes out, from a reference model or any file that fastcnn wrote.

Importing this package imports neither torch nor Pillow.
"""
