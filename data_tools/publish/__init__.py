"""A dataset as others get it: card, manifest, hashes."""
