"""A dataset as a release: card, manifest with hashes, records of every stage; to a folder, a hub or an object store, and back."""
