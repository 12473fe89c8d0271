"""Copies of finished step folders elsewhere, kept up while a run trains, and brought back when its folder is lost."""
