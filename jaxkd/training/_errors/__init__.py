"""Errors of the loop and their messages; private."""
