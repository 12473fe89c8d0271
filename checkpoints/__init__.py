"""What one does with finished step folders: list, verify, convert names, generate, report."""
