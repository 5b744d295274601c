"""The helper package of medlm: language models and deep learning in medicine."""
