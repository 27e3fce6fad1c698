"""The vtx command, run folders, and the worker that every launcher runs."""
