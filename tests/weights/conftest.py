collect_ignore = ["make_torch_golden.py"]  # needs PyTorch; run by hand
