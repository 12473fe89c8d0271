"""An S3 of this machine, as for publishing."""

from tests.checkpoints.publish.conftest import moto, s3

__all__ = ["moto", "s3"]
