"""A place that speaks S3 as a test says."""

from tests.media.test_object_store import fast, server

__all__ = ["fast", "server"]
