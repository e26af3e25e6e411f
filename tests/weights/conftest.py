collect_ignore = ["make_hf_golden.py", "make_torch_golden.py"]  # need PyTorch; run by hand
