"""Paths, a quiet start, profiles, plain tables, several processes, downloads."""
