"""Objectives of contrastive distillation; private."""
