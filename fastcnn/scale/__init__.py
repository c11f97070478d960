"""Scale-out: shards in, parts out, on as many processes and machines as there are.

A shard (`shards.py`) is a tar, a row group of a Parquet file or some thousand listed files; `reading.py` gives its pictures.
What the model says of them is one part (`parts.py`), a file whose name holds the shard, the model and the settings, and which
appears whole or not at all: a rerun does what has no part. `job.py` makes a part of a shard; `ray_pool.py` hands that to the
actors of a Ray cluster. The state is the names of the parts, nothing else.

Importing this package imports neither torch nor Pillow.
"""
