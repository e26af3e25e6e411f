collect_ignore = ["make_torch_golden.py"]  # it needs PyTorch, and is run by hand
