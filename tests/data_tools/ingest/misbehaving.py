"""An extractor that does what pages tell it to; its process loads nothing else."""

import os


def misbehave(data: bytes) -> bytes:
    """As told; runs in the child."""
    if data == b"crash":
        os.abort()
    if data == b"exit":
        os._exit(3)
    if data == b"hang":
        while True:
            pass
    if data == b"memory":
        return bytes(2**30)
    if data == b"raise":
        raise ValueError("bad page")
    return data[::-1]
