"""Students of fewer layers or channels; private."""
