"""The rules of `check`, grouped by what goes wrong when one is broken.

A rule is a function that takes an `Overlay` and yields findings. Each finding says what goes wrong, where it was seen
(an issue number), and how to fix it. Add a new rule to the module of its group, and to RULES at the end of it.
"""
