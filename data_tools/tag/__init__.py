"""What is found out about documents, kept beside them as attributes."""
