"""Paths, a quiet start, profiles, plain tables, which process of several, downloads."""
