"""One function per hot operation, several backends each, one plain reference."""
