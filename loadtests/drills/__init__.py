"""Drills count what clients lose through kills, updates, swaps, overload, hostile requests and hours of load."""
