"""The ops in plain PyTorch: slow, any device, any floating dtype. They define "correct"."""
