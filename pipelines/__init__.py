"""Composition: run files, the command line, tracking, reports."""
