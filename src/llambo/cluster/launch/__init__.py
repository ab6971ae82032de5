"""Launchers: what starts and stops nodes."""
