"""Objectives of language models; private."""
