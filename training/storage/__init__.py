"""What is on the disk and how it survives: run folders, checkpoints, exported encoders."""
