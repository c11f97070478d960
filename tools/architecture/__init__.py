"""The layers of fastcnn as its code has them: who imports whom, a picture of it, and figures that tell how it is kept.

    PYTHONPATH=tools python -m architecture --write      docs/architecture.md and its pictures (`make architecture`)

Only the standard library is used, and nothing of the package is imported: the sources are read as text.
"""
