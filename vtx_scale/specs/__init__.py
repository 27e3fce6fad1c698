"""What can be configured: frozen dataclasses and size tables, standard library only.

Begin with `run`.
"""
