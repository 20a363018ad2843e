"""Published quantizers, one readable file each, on `lowbit.torch`; they want PyTorch."""
