"""Small model definitions that commands, tests and benches need; they want PyTorch."""
