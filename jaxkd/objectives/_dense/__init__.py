"""Objectives of detectors, segmentation and pose; private."""
