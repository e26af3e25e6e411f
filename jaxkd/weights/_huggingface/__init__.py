"""Names and layouts of Hugging Face models; private."""
