"""An S3 of this machine, as for publishing."""

from tests.stores import moto, s3

__all__ = ["moto", "s3"]
