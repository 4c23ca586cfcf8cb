"""Files at local paths and in object stores, by one set of words."""

from __future__ import annotations

from ttsvar_ray.storage.location import Location, locate, storage_environment
from ttsvar_ray.storage.uris import for_people, is_uri, redacted, scrubbed, without_secrets

__all__ = [
    "Location",
    "for_people",
    "is_uri",
    "locate",
    "redacted",
    "scrubbed",
    "storage_environment",
    "without_secrets",
]
